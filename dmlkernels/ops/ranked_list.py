"""ranked_list: the Ranked List Loss, streamed over tiles of pairs that are never stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from .._schemas import ROW_STATS, TILE, TOTALS
from ..reference import ranked_list as reference
from ..reference.pairwise import compute_dtype

_NAME = "ranked_list_loss"
_POSITIVE_ARGUMENT = 16  # place of `positive` in the schema of ranked_list_fwd


def _fake_fwd(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    m, n = embeddings.shape[0], (embeddings if ref_emb is None else ref_emb).shape[0]
    easy = arguments[_POSITIVE_ARGUMENT - 3] == "easy"
    dtype = compute_dtype(embeddings.dtype)
    return (
        embeddings.new_empty(m, dtype=dtype),
        embeddings.new_empty(len(ROW_STATS), m, dtype=dtype),
        embeddings.new_empty(len(TOTALS), dtype=dtype),
        embeddings.new_empty(m if easy else 0, dtype=torch.int64),
        embeddings.new_empty((m + TILE - 1) // TILE, (n + TILE - 1) // TILE, dtype=torch.uint8),
    )


def _fake_bwd(
    grad_loss: Tensor, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    ref_rows = ref_emb.shape[0] if ref_emb is not None and arguments[-1] else 0
    return embeddings.new_empty(embeddings.shape), embeddings.new_empty(ref_rows, embeddings.shape[1])


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize, *options, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    row_stats, _, *selected = output[1:]
    ctx.save_for_backward(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, row_stats, *selected)
    ctx.rows, ctx.options, ctx.arguments = (ignore_index, normalize), options, len(inputs)


def _backward(bwd: Callable) -> Callable:
    def backward(ctx: Any, grad_loss: Tensor | None, *unused: None) -> tuple:
        none = (None,) * (ctx.arguments - 3)
        if grad_loss is None:
            return None, None, None, *none
        *pair, row_stats, easy_index, tile_active = ctx.saved_tensors
        need_grad_ref = pair[2] is not None and ctx.needs_input_grad[2]
        state = (row_stats, easy_index, tile_active)
        grad_emb, grad_ref = bwd(grad_loss.contiguous(), *pair, *ctx.rows, *state, *ctx.options, need_grad_ref)
        return grad_emb, None, grad_ref if need_grad_ref else None, *none

    return backward


def register() -> None:
    _library.register(
        "ranked_list", fake_fwd=_fake_fwd, fake_bwd=_fake_bwd, setup_context=_setup_context, backward=_backward
    )


class Options(NamedTuple):
    """The options as the operator takes them."""

    alpha: float
    margin: float
    pos_temperature: float
    neg_temperature: float
    pos_weight: float
    neg_weight: float
    weight_grad: bool
    grad: str
    positive: str
    eps_mode: str


def resolve_options(
    alpha: float | None = None,
    margin: float = 0.4,
    pos_temperature: float = 0.0,
    neg_temperature: float = 10.0,
    neg_weight: float | None = None,
    form: str = "tpami",
    weight_grad: bool = False,
    grad: str = "full",
    positive: str = "all",
    eps_mode: str = "none",
) -> Options:
    """Check the options of `ranked_list_loss` and give the defaults that depend on others their values."""
    for name, value, choices in (
        ("form", form, ("tpami", "cvpr")),
        ("grad", grad, ("full", "query")),
        ("positive", positive, ("all", "easy")),
        ("eps_mode", eps_mode, ("none", "pml")),
    ):
        _checks.one_of(_NAME, name, value, choices)
    alpha = 1.0 + margin / 2 if alpha is None else alpha
    if neg_weight is None:
        neg_weight = 0.5 if form == "tpami" else 1.0
    return Options(
        alpha=float(alpha),
        margin=float(margin),
        pos_temperature=float(pos_temperature),
        neg_temperature=float(neg_temperature),
        pos_weight=1.0 - neg_weight if form == "tpami" else 1.0,
        neg_weight=float(neg_weight),
        weight_grad=weight_grad,
        grad=grad,
        positive=positive,
        eps_mode=eps_mode,
    )


def loss_and_totals(
    inputs: _checks.PairInputs, options: Options, reduction: str, check_finite: bool
) -> tuple[Tensor, Tensor]:
    """The reduced loss and the totals (4,) of all queries, entries as `_schemas.TOTALS` names them."""
    _checks.one_of(_NAME, "reduction", reduction, ("mean", "sum", "none"))
    namespace = _checks.pair_namespace(_NAME, inputs, check_finite)
    if namespace is None:
        loss, totals = reference.ranked_list(inputs, *options)
    else:
        forward = getattr(torch.ops, namespace).ranked_list_fwd
        precision, deterministic = _backend.get_float32_precision(), torch.are_deterministic_algorithms_enabled()
        loss, _, totals, _, _ = forward(*inputs, *options, precision, deterministic, check_finite)
    if reduction == "none":
        return loss, totals
    if reduction == "sum":
        return loss.sum(), totals
    if inputs.ignore_index is None:
        return loss.sum() / max(inputs.labels.shape[0], 1), totals
    return loss.sum() / (inputs.labels != inputs.ignore_index).sum().clamp_min(1), totals


def ranked_list_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    alpha: float | None = None,
    margin: float = 0.4,
    pos_temperature: float = 0.0,
    neg_temperature: float = 10.0,
    neg_weight: float | None = None,
    form: str = "tpami",
    weight_grad: bool = False,
    grad: str = "full",
    positive: str = "all",
    eps_mode: str = "none",
    reduction: str = "mean",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Ranked List Loss: positives pulled inside α − m, negatives pushed beyond α, harder pairs weighing more.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        alpha: distance beyond which a negative costs nothing; None: 1 + margin/2 (RLL-Simpler).
        margin: m; a positive nearer than alpha − margin costs nothing.
        pos_temperature: T_p of the softmax weights of the positives; 0 is their plain mean.
        neg_temperature: T_n, likewise for the negatives.
        neg_weight: λ; None: 0.5 (tpami), 1.0 (cvpr).
        form: "tpami" weighs (1 − λ, λ), "cvpr" weighs (1, λ).
        weight_grad: differentiate the softmax weights too; by default they are constants, as in the authors' code.
        grad: "full" sends a pair's gradient to both ends, "query" to the query only (the authors' code).
        positive: "all" non-trivial positives, or "easy": the nearest positive only (Easy Positive Sampling).
        eps_mode: "none", or "pml": 1e-5 for every gallery row in the weights' denominators and no coincident pairs;
            with `weight_grad=True` this is pytorch-metric-learning's loss.
        reduction: "mean" over all queries that ignore_index leaves, "sum", or "none" -> (M,).

    Returns:
        () or (M,) loss, float32 (float64 for float64). An empty set costs exactly 0. The authors also weigh a query by
        its share of the total weight; that is not done here.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019, eq. 2-9; TPAMI 2021, eq. 4-12.

    Example:
        >>> loss = F.ranked_list_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8)
        >>> loss.backward()
    """
    inputs = _checks.pair_inputs(_NAME, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    options = resolve_options(
        alpha, margin, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode
    )
    return loss_and_totals(inputs, options, reduction, check_finite)[0]
