"""ranked_list: the Ranked List Loss, streamed over tiles of pairs that are never stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks
from ..reference import ranked_list as reference

_NAME = "ranked_list_loss"


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
    """The reduced loss and the totals (4,) of all queries, entries as `_contract.TOTALS` names them."""
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
