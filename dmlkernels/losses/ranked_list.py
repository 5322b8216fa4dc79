"""Ranked List Loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.pair_loss import Options, Side, Statistics
from ._rows import RowLoss, Source

PML_EPS = 1e-5


class Settings(NamedTuple):
    """The options of `ranked_list_loss`, checked; those that depend on others have their values."""

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
    reduction: str

    @staticmethod
    def checked(
        name: str,
        alpha: float | None,
        margin: float,
        pos_temperature: float,
        neg_temperature: float,
        neg_weight: float | None,
        form: str,
        weight_grad: bool,
        grad: str,
        positive: str,
        eps_mode: str,
        reduction: str,
    ) -> Settings:
        for argument, value, choices in (
            ("form", form, ("tpami", "cvpr")),
            ("grad", grad, ("full", "query")),
            ("positive", positive, ("all", "easy")),
            ("eps_mode", eps_mode, ("none", "pml")),
            ("reduction", reduction, ("mean", "sum", "none", "share")),
        ):
            _checks.one_of(name, argument, value, choices)
        margin = _checks.number(name, "margin", margin)
        if neg_weight is None:
            neg_weight = 0.5 if form == "tpami" else 1.0
        return Settings(
            alpha=1.0 + margin / 2 if alpha is None else _checks.number(name, "alpha", alpha),
            margin=margin,
            pos_temperature=_checks.number(name, "pos_temperature", pos_temperature),
            neg_temperature=_checks.number(name, "neg_temperature", neg_temperature),
            pos_weight=1.0 - neg_weight if form == "tpami" else 1.0,
            neg_weight=_checks.number(name, "neg_weight", neg_weight),
            weight_grad=weight_grad,
            grad=grad,
            positive=positive,
            eps_mode=eps_mode,
            reduction=reduction,
        )

    def loss(self, source: Source) -> tuple[Tensor, Statistics]:
        stats = source.statistics(
            Options(
                "distance",
                Side("moment", 1.0, self.alpha - self.margin, temperature=self.pos_temperature),
                Side("moment", -1.0, self.alpha, temperature=self.neg_temperature),
                weight_grad=self.weight_grad,
                grad=self.grad,
                apart=self.eps_mode == "pml",
            )
        )
        pos, neg = stats.pos, stats.neg
        if self.eps_mode == "pml":
            pos = pos * self._share_beside_eps(stats.pos_log_sum, source)
            neg = neg * self._share_beside_eps(stats.neg_log_sum, source)
        return self._reduce(self.pos_weight * pos + self.neg_weight * neg, stats, source), stats

    def _share_beside_eps(self, log_sum: Tensor, source: Source) -> Tensor:
        """Z/(Z + ε·N) (M,) of the denominators Z of the weights."""
        gallery = source.gallery_rows().clamp_min(1).to(log_sum.dtype)
        share = (log_sum - (PML_EPS * gallery).log()).sigmoid()
        return share if self.weight_grad else share.detach()

    def _reduce(self, rows: Tensor, stats: Statistics, source: Source) -> Tensor:
        if self.reduction == "none":
            return rows
        if self.reduction == "sum":
            return rows.sum()
        if self.reduction == "share":
            log_weight = torch.logaddexp(stats.pos_log_sum, stats.neg_log_sum).detach()
            # Of no query with a set, all logarithms are -inf, and their softmax NaN.
            share = torch.where(log_weight == -torch.inf, 0, log_weight.softmax(0))
            return (share * rows).sum()
        return rows.sum() / source.rows().clamp_min(1)


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

    Of each query the non-trivial sets P* = {d > α − m} and N* = {d < α} cost the means of their violations
    d − (α − m) and α − d under the weights softmax(T·violation) inside each set.

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
        reduction: "mean" over all queries that ignore_index leaves, "sum", "none" -> (M,), or "share": each query
            weighs by its share of the total weight Σ e^{T·violation} of both its sets, a constant of the gradient (the
            authors' layer; the gradient does not shrink as queries lose their sets).

    Returns:
        () or (M,) loss, float32 (float64 for float64). An empty set costs exactly 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019, eq. 2-9; TPAMI 2021, eq. 4-12.

    Example:
        >>> loss = F.ranked_list_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8)
        >>> loss.backward()
    """
    name = "ranked_list_loss"
    settings = Settings.checked(
        name, alpha, margin, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode,
        reduction,
    )  # fmt: skip
    inputs = _checks.pair_inputs(name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return settings.loss(Source(name, inputs, positive, check_finite))[0]


class RankedListLoss(RowLoss):
    """`ranked_list_loss` as a module; the defaults are RLL-Simpler's.

    Args:
        margin, alpha, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode,
            reduction: as in `ranked_list_loss`. `positive="easy"` gives Easy Positive Sampling (EPS).
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (ordered pairs in the non-trivial sets), mean_pos_distance and
            mean_neg_distance over those pairs.

    Example:
        >>> loss = losses.RankedListLoss(margin=0.4)
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float | None = None,
        pos_temperature: float = 0.0,
        neg_temperature: float = 10.0,
        neg_weight: float | None = None,
        form: str = "tpami",
        weight_grad: bool = False,
        grad: str = "full",
        positive: str = "all",
        eps_mode: str = "none",
        reduction: str = "mean",
        **options: Any,
    ) -> None:
        settings = Settings.checked(
            "RankedListLoss", alpha, margin, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad,
            positive, eps_mode, reduction,
        )  # fmt: skip
        super().__init__(settings, "distance", **options)
