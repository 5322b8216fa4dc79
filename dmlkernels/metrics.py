"""Retrieval metrics and neighbours, streamed in blocks of rows: the N×N matrix never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import _checks

__all__ = ["neighbors", "retrieval", "singular_values"]


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: bool = True,
    block: int = 1024,
) -> dict[str, float]:
    """Compute Recall@k, MAP@R and the effective rank of embeddings.

    Neighbours are ranked by Euclidean distance, which on unit vectors is cosine similarity; of equally near ones the
    lowest index comes first. Queries without any relevant item are left out of all averages.

    Args:
        embeddings: (M, D), queries; without a gallery each query is searched among the M - 1 others.
        labels: (M,), integers.
        gallery: (N, D), or None for leave-one-out.
        gallery_labels: (N,), integers; given exactly when `gallery` is.
        ks: the k of Recall@k: the share of queries with a relevant item among the k nearest.
        normalize: scale every row to unit length first.
        block: queries handled at a time; memory is O(block · N).

    Returns:
        `recall_at_<k>` for each k; `map_at_r`: the mean over queries of (1/R) Σ_{i≤R} precision(i) · relevant(i), with
        R the number of relevant items (class size - 1 for leave-one-out); `effective_rank` of `embeddings`.

    Raises:
        ValueError: an argument has a wrong shape or type, a value is NaN or infinite, or no query has a relevant item.

    Source:
        MAP@R: Musgrave, Belongie, Lim, "A Metric Learning Reality Check" (2020), section 3.2.

    Example:
        >>> scores = retrieval(embeddings, labels)
        >>> scores["recall_at_1"], scores["map_at_r"]
    """
    block = _rows_at_a_time("retrieval", block)
    queries, items = _prepare("retrieval", embeddings, gallery, normalize)
    labels = _checks.integers("retrieval", "labels", labels, embeddings, "M")
    if (gallery is None) != (gallery_labels is None):
        _checks.fail("retrieval", "gallery_labels", "given exactly when gallery is", _given(gallery_labels))
    item_labels = labels
    if gallery is not None:
        item_labels = _checks.integers("retrieval", "gallery_labels", gallery_labels, gallery, "N")
    ks = _positive_integers("retrieval", "ks", ks)
    relevant = _count_relevant(labels, item_labels, leave_one_out=gallery is None)  # (M,)
    counted = int((relevant > 0).sum())
    if not counted:
        raise ValueError("retrieval: labels must give at least one query a relevant item, got none")

    # Sums stay on the device until the end; the only values fetched before are the depths of the blocks.
    found = torch.zeros(len(ks), dtype=torch.int64, device=queries.device)
    precision = torch.zeros((), dtype=torch.float64, device=queries.device)
    available = len(items) - (gallery is None)
    depths = [min(available, max(max(ks), int(part.max()))) for part in relevant.split(block)]
    for start, nearest in _nearest(queries, items, depths, gallery is None, block):
        rows = slice(start, start + len(nearest))
        hits = item_labels[nearest] == labels[rows, None]  # (b, depth)
        found += torch.stack([hits[:, :k].any(1).sum() for k in ks])
        place = torch.arange(1, nearest.shape[1] + 1, device=hits.device)
        hits &= place <= relevant[rows, None]
        precision += (hits.cumsum(1) * hits / place.double()).sum(1).div(relevant[rows].clamp(min=1)).sum()
    recalls = {f"recall_at_{k}": count / counted for k, count in zip(ks, found.tolist())}
    return {**recalls, "map_at_r": float(precision) / counted, "effective_rank": _effective_rank(queries, block)}


def neighbors(
    embeddings: Tensor, k: int, gallery: Tensor | None = None, *, normalize: bool = True, block: int = 1024
) -> Tensor:
    """Find the k nearest items of each query, nearest first, ties to the lowest index.

    Args:
        embeddings: (M, D), queries.
        k: neighbours per query, at most N (M - 1 without a gallery).
        gallery: (N, D), or None to search among the other queries.
        normalize: scale every row to unit length first.
        block: queries handled at a time; memory is O(block · N).

    Returns:
        (M, k) int64, indices into `gallery`, or into `embeddings` without one.

    Raises:
        ValueError: an argument has a wrong shape or type, or a value is NaN or infinite.

    Example:
        >>> neighbors(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2]]), 1).squeeze(1)
        tensor([2, 2, 0])
    """
    block = _rows_at_a_time("neighbors", block)
    queries, items = _prepare("neighbors", embeddings, gallery, normalize)
    available = len(items) - (gallery is None)
    k = _checks.integer("neighbors", "k", k)
    if not 1 <= k <= available:
        _checks.fail("neighbors", "k", f"from 1 to {available}", k)
    depths = [k] * math.ceil(len(queries) / block)
    return torch.cat([nearest for _, nearest in _nearest(queries, items, depths, gallery is None, block)])


def singular_values(embeddings: Tensor, *, block: int = 1024) -> Tensor:
    """Compute the singular values of the centred embeddings, largest first: a collapse shows as a fall to zero.

    They come from the D×D covariance in float64, so values below 1e-8 of the largest are rounding.

    Args:
        embeddings: (M, D); normalise the rows first to see the spectrum that `retrieval` sees.
        block: rows converted to float64 at a time.

    Returns:
        (min(M, D),) float64.

    Raises:
        ValueError: `embeddings` is not (M, D) with M >= 1, or holds NaN or Inf.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        tensor([4.2426, 0.0000], dtype=torch.float64)
    """
    block = _rows_at_a_time("singular_values", block)
    rows, _ = _prepare("singular_values", embeddings, None, False)
    return _singular_values(rows, block)


def _prepare(op: str, embeddings: Tensor, gallery: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    """Check the matrices and return queries and items in float32 or float64."""
    _checks.flag(op, "normalize", normalize)
    matrices = {"embeddings": _checks.matrix(op, "embeddings", embeddings)}
    if gallery is not None:
        matrices["gallery"] = _checks.matrix(op, "gallery", gallery, "(N, D)")
        _checks.same_width(op, embeddings, gallery, "gallery", "(N, D)")
    double = any(matrix.dtype == torch.float64 for matrix in matrices.values())
    prepared = []
    for name, matrix in matrices.items():
        if not len(matrix):
            _checks.fail(op, name, "at least one row", tuple(matrix.shape))
        if not matrix.isfinite().all():
            _checks.fail(op, name, "finite", "NaN or Inf")
        matrix = matrix.detach().to(torch.float64 if double else torch.float32)
        prepared.append(torch.nn.functional.normalize(matrix) if normalize else matrix)
    return prepared[0], prepared[-1]


def _positive_integers(op: str, argument: str, values: object) -> tuple[int, ...]:
    given = tuple(values) if isinstance(values, Sequence) else ()
    if not given or not all(_checks.is_integer(value) and value >= 1 for value in given):
        _checks.fail(op, argument, "positive integers", repr(values))
    return tuple(int(value) for value in given)


def _rows_at_a_time(op: str, block: int) -> int:
    block = _checks.integer(op, "block", block)
    if block < 1:
        _checks.fail(op, "block", "at least 1", block)
    return block


def _given(value: object) -> str:
    return "None" if value is None else "a tensor"


def _count_relevant(labels: Tensor, item_labels: Tensor, leave_one_out: bool) -> Tensor:
    classes, counts = item_labels.unique(return_counts=True)
    place = torch.searchsorted(classes, labels.contiguous()).clamp(max=len(classes) - 1)
    return torch.where(classes[place] == labels, counts[place], 0) - int(leave_one_out)


def _nearest(
    queries: Tensor, items: Tensor, depths: Sequence[int], leave_one_out: bool, block: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield for each block its first row and the (b, depth) indices of its nearest items."""
    half_squares = items.square().sum(1) / 2  # (N,)
    for number, depth in enumerate(depths):
        start = number * block
        # x·y - |y|²/2 falls as |x - y| grows, and needs no root.
        scores = torch.addmm(half_squares, queries[start : start + block], items.T, beta=-1)  # (b, N)
        if leave_one_out:
            own = torch.arange(len(scores), device=scores.device)
            scores[own, own + start] = -torch.inf
        yield start, _top(scores, depth)


def _top(scores: Tensor, depth: int) -> Tensor:
    """Indices of the largest scores of each row, largest first, ties to the lowest index."""
    values, indices = scores.topk(depth, dim=1)
    # topk returns any of the items that tie with its last one: where it left one out, the whole row is sorted instead.
    cut = (scores >= values[:, -1:]).sum(1) > depth
    indices, order = indices.sort(1)
    indices = indices.gather(1, values.gather(1, order).sort(stable=True, dim=1, descending=True).indices)
    if cut.any():
        indices[cut] = scores[cut].sort(stable=True, dim=1, descending=True).indices[:, :depth]
    return indices


def _singular_values(rows: Tensor, block: int) -> Tensor:
    mean = rows.mean(0, dtype=torch.float64)
    covariance = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in rows.split(block):
        centred = part.double() - mean
        covariance.addmm_(centred.T, centred)
    return torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).sqrt()[: min(rows.shape)]


def _effective_rank(rows: Tensor, block: int) -> float:
    """exp(entropy of the normalised squared singular values); 0 where all rows are equal up to rounding."""
    squares = _singular_values(rows, block).square()
    total = squares.sum()
    if total <= 1e-12 * rows.double().square().sum():
        return 0.0
    return float(torch.special.entr(squares / total).sum().exp())
