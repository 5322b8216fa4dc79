"""Ranked List Loss."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .._options import choice, flag, not_negative, number
from ..ops.pair_loss import Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings

PML_EPS = 1e-5


@dataclasses.dataclass(eq=False, repr=False)
class RankedList(PairSettings):
    """The options of `ranked_list_loss`, and the loss."""

    op = "ranked_list_loss"
    value = "distance"

    margin: float = number(0.4)
    alpha: float | None = number(None)
    pos_temperature: float = number(0.0)
    neg_temperature: float = number(10.0)
    neg_weight: float | None = not_negative(None)
    form: str = choice("tpami", "tpami", "cvpr")
    weight_grad: bool = flag(False)
    grad: str = choice("full", "full", "query")
    positive: str = choice("all", "all", "easy")
    eps_mode: str = choice("none", "none", "pml")
    reduction: str = choice("mean", "mean", "sum", "none", "share")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        alpha = 1.0 + self.margin / 2 if self.alpha is None else self.alpha
        stats = pairs.statistics(
            "distance",
            Side("moment", 1.0, alpha - self.margin, temperature=self.pos_temperature),
            Side("moment", -1.0, alpha, temperature=self.neg_temperature),
            weight_grad=self.weight_grad,
            grad=self.grad,
            apart=self.eps_mode == "pml",
            neg_totals=True,
        )
        pos, neg = stats.pos, stats.neg
        if self.eps_mode == "pml":
            pos = pos * self._share_beside_eps(stats.pos_log_sum, pairs)
            neg = neg * self._share_beside_eps(stats.neg_log_sum, pairs)
        neg_weight = {"tpami": 0.5, "cvpr": 1.0}[self.form] if self.neg_weight is None else self.neg_weight
        pos_weight = 1.0 - neg_weight if self.form == "tpami" else 1.0
        return self._reduce(pos_weight * pos + neg_weight * neg, stats, pairs), stats

    def _share_beside_eps(self, log_sum: Tensor, pairs: Pairs) -> Tensor:
        """Z/(Z + ε·N) (M,) of the denominators Z of the weights."""
        gallery = pairs.gallery_rows().clamp_min(1).to(log_sum.dtype)
        share = (log_sum - (PML_EPS * gallery).log()).sigmoid()
        return share if self.weight_grad else share.detach()

    def _reduce(self, rows: Tensor, stats: Statistics, pairs: Pairs) -> Tensor:
        if self.reduction == "none":
            return rows
        if self.reduction == "sum":
            return rows.sum()
        if self.reduction == "share":
            log_weight = torch.logaddexp(stats.pos_log_sum, stats.neg_log_sum).detach()
            # Of no query with a set, all logarithms are -inf, and their softmax NaN.
            share = torch.where(log_weight == -torch.inf, 0, log_weight.softmax(0))
            return (share * rows).sum()
        return rows.sum() / pairs.queries().clamp_min(1)


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
    settings = RankedList(
        margin, alpha, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode,
        reduction, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite,
    )  # fmt: skip
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class RankedListLoss(RankedList, PairLoss):
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
