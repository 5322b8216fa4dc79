"""nearest_positive and mine: in-batch selection of positives and negatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import nearest_positive as reference
from ..reference.pairwise import compute_dtype


class NearestPositive(NamedTuple):
    distance: Tensor  # (M,) float32 (float64 for float64); +inf where there is none
    index: Tensor  # type: ignore[assignment]  # (M,) int64 row of the gallery, -1 for none; not tuple.index


class Mined(NamedTuple):
    pos_distance: Tensor  # (M,) float32 (float64 for float64); +inf where there is none
    pos_index: Tensor  # (M,) int64; -1 where there is none
    neg_distance: Tensor
    neg_index: Tensor


def _selection(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    m = embeddings.shape[0]
    distance = embeddings.new_empty(m, dtype=compute_dtype(embeddings.dtype))
    return distance, embeddings.new_empty(m, dtype=torch.int64)


def _fake_nearest_fwd(embeddings: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return _selection(embeddings)


def _fake_mine_fwd(embeddings: Tensor, *arguments: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*_selection(embeddings), *_selection(embeddings))


def _grads(embeddings: Tensor, ref_emb: Tensor | None, need_grad_ref: bool) -> tuple[Tensor, Tensor]:
    ref_rows = 0 if ref_emb is None or not need_grad_ref else ref_emb.shape[0]
    return embeddings.new_empty(embeddings.shape), embeddings.new_empty(ref_rows, embeddings.shape[1])


def _fake_nearest_bwd(
    grad: Tensor, embeddings: Tensor, ref_emb: Tensor | None, index: Tensor, normalize: bool, need_grad_ref: bool
) -> tuple[Tensor, Tensor]:
    return _grads(embeddings, ref_emb, need_grad_ref)


def _fake_mine_bwd(
    grad_pos: Tensor,
    grad_neg: Tensor,
    embeddings: Tensor,
    ref_emb: Tensor | None,
    pos_index: Tensor,
    neg_index: Tensor,
    normalize: bool,
    need_grad_ref: bool,
) -> tuple[Tensor, Tensor]:
    return _grads(embeddings, ref_emb, need_grad_ref)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    indices = output[1::2]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*indices)
    ctx.save_for_backward(inputs[0], inputs[2], *indices)
    ctx.normalize, ctx.arguments = inputs[7], len(inputs)


def _backward(bwd: Callable) -> Callable:
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        embeddings, ref_emb, *indices = ctx.saved_tensors
        none = (None,) * (ctx.arguments - 3)
        distances = grads[::2]
        if all(grad is None for grad in distances):
            return None, None, None, *none
        like = next(grad for grad in distances if grad is not None)
        dense = [torch.zeros_like(like) if grad is None else grad.contiguous() for grad in distances]
        need_grad_ref = ref_emb is not None and ctx.needs_input_grad[2]
        grad_emb, grad_ref = bwd(*dense, embeddings, ref_emb, *indices, ctx.normalize, need_grad_ref)
        return grad_emb, None, grad_ref if need_grad_ref else None, *none

    return backward


def register() -> None:
    for op, fake_fwd, fake_bwd in (
        ("nearest_positive", _fake_nearest_fwd, _fake_nearest_bwd),
        ("mine", _fake_mine_fwd, _fake_mine_bwd),
    ):
        _library.register(op, fake_fwd=fake_fwd, fake_bwd=fake_bwd, setup_context=_setup_context, backward=_backward)


def nearest_positive(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> NearestPositive:
    """Nearest row of the same class for every query: Easy Positive Sampling.

    The distance is differentiable to both ends, the index is not. Ties go to the lowest index.

    Args:
        embeddings: (M, D) queries, floating.
        labels: (M,) integers.
        ref_emb: (N, D) gallery; None compares the queries with themselves, without the pairs (i, i).
        ref_labels: (N,) integers, with `ref_emb`.
        normalize: L2-normalise the rows (distances are then at most 2).
        ids: (M,) integers; pairs of equal ids are excluded (give the copies of one image one id).
        ref_ids: (N,) integers, with `ref_emb`.
        ignore_index: rows of this label are no query, no positive and no negative.
        check_finite: raise for NaN or Inf; by default they make the distances NaN.

    Returns:
        NearestPositive(distance (M,), index (M,)); +inf and -1 for a query without a positive.

    Raises:
        ValueError: for a wrong shape, dtype or device, or with `check_finite`.

    Source:
        Levi et al., "Rethinking preventing class-collapsing in metric learning with margin-based losses", ICCV 2021.

    Example:
        >>> found = F.nearest_positive(torch.randn(8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
        >>> found.index
        tensor([1, 0, 3, 2, 5, 4, 7, 6])
    """
    op = "nearest_positive"
    inputs = _checks.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return find_nearest(op, inputs, check_finite)


def find_nearest(op: str, inputs: _checks.PairInputs, check_finite: bool) -> NearestPositive:
    """`nearest_positive` on checked pair arguments; `op` is the public function, for errors."""
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if namespace is None:
        return NearestPositive(*reference.nearest_positive(inputs))
    forward = getattr(torch.ops, namespace).nearest_positive_fwd
    return NearestPositive(*forward(*inputs, _backend.get_float32_precision(), check_finite))


def mine(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    positive: str = "easy",
    negative: str = "hard",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Mined:
    """One positive and one negative for every query, with differentiable distances.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        positive: "easy" (nearest) or "hard" (farthest).
        negative: "hard" (nearest) or "semihard" (nearest that is farther than the chosen positive, strictly).

    Returns:
        Mined(pos_distance, pos_index, neg_distance, neg_index), each (M,); +inf and -1 where there is none.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Levi et al., ICCV 2021; Xuan et al., "Improved embeddings with easy positive triplet mining", WACV 2020
        (EPHN is easy × hard, EPSHN easy × semihard; BatchEasyHardMiner has the same words).

    Example:
        >>> mined = F.mine(torch.randn(8, 4), torch.arange(8) // 2, negative="semihard")
    """
    inputs = _checks.pair_inputs("mine", embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return mine_pairs(inputs, positive, negative, check_finite)


def mine_pairs(inputs: _checks.PairInputs, positive: str, negative: str, check_finite: bool) -> Mined:
    """`mine` on checked pair arguments."""
    _checks.one_of("mine", "positive", positive, ("easy", "hard"))
    _checks.one_of("mine", "negative", negative, ("hard", "semihard"))
    namespace = _checks.pair_namespace("mine", inputs, check_finite)
    if namespace is None:
        return Mined(*reference.mine(inputs, positive, negative))
    forward = getattr(torch.ops, namespace).mine_fwd
    return Mined(*forward(*inputs, positive, negative, _backend.get_float32_precision(), check_finite))
