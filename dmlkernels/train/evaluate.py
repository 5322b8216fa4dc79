"""What an evaluation measures of a network on classes that it was not trained on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmlkernels import functional, metrics
from dmlkernels.data import RetrievalData
from dmlkernels.train import model

KS = (1, 2, 4, 8)
BLOCK = 1024


class Evaluation(NamedTuple):
    """Numbers, and the embeddings that they are of: queries (M, D) and a separate gallery (N, D), or None."""

    numbers: dict[str, float]
    queries: Tensor
    gallery: Tensor | None


def evaluate(network: nn.Module, data: RetrievalData, device: torch.device) -> Evaluation | None:
    """Embed the test images; None where an embedding is not finite.

    The numbers: those of `metrics.retrieval`, the mean distances of `mean_distances`, and the coding rate of the
    queries (ε² 0.5).
    """
    queries = model.embed(network, data.test, device)
    gallery = None if data.gallery is None else model.embed(network, data.gallery, device)
    gallery_labels = None if data.gallery is None else data.gallery.labels
    if not all(part.isfinite().all() for part in (queries, gallery) if part is not None):
        return None
    numbers = metrics.retrieval(queries, data.test.labels, gallery, gallery_labels, ks=KS)
    numbers |= mean_distances(queries, data.test.labels, gallery, gallery_labels)
    numbers["coding_rate"] = float(functional.coding_rate(queries))
    return Evaluation(numbers, queries, gallery)


def mean_distances(
    queries: Tensor, labels: Tensor, gallery: Tensor | None = None, gallery_labels: Tensor | None = None
) -> dict[str, float]:
    """Mean distance of all pairs of one class, and of all pairs of two, in blocks of queries.

    Args:
        queries: (M, D) unit rows.
        labels: (M,).
        gallery: (N, D) unit rows; None: the queries, without the pairs of a row and itself.
        gallery_labels: (N,), where there is a gallery.

    Returns:
        `mean_pos_distance` and `mean_neg_distance`; 0 where there is no such pair.
    """
    items = queries if gallery is None else gallery
    item_labels = labels if gallery_labels is None else gallery_labels
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = functional.pairwise_distance(queries[rows], items)  # (b, N)
        same = labels[rows, None] == item_labels
        pos, every = distance[same].sum(dtype=torch.float64), distance.sum(1).sum(dtype=torch.float64)
        sums += torch.stack([pos, every - pos])
        pairs = same.sum()
        counts += torch.stack([pairs, same.numel() - pairs])
    if gallery is None:
        counts[0] -= len(queries)
    means = (sums / counts.clamp(min=1)).tolist()
    return {"mean_pos_distance": means[0], "mean_neg_distance": means[1]}
