"""Margin loss: hinges of the distances on either side of a boundary β that may be learned."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._options import Fixed, above_zero, choice, number
from ..ops.distance_weighted import sample_negatives
from ..ops.pair_loss import Side, Statistics
from ..reference.pair_loss import one_side
from ..reference.pairwise import compute_dtype
from ._pairs import Listed, PairLoss, Pairs, PairSettings, mean, sampled_distance


def _classes(op: str, argument: str, value: int) -> int:
    """How many classes have a β."""
    if not _checks.is_integer(value):
        _checks.fail(op, argument, "an int or None", repr(value))
    if value < 1:
        _checks.fail(op, argument, "at least 1", value)
    return int(value)


class Weighted(NamedTuple):
    """The statistics, and how often the pairs of each query (M,) count."""

    stats: Statistics
    pos_weight: Tensor
    neg_weight: Tensor
    triplets: Tensor  # that β belongs to, for its own term


@dataclasses.dataclass(eq=False, repr=False)
class Margin(PairSettings):
    """The options of `margin_loss`, and the loss."""

    op = "margin_loss"
    value = "distance"

    beta: float | Tensor
    margin: float = number(0.2)
    nu: float = number(0.0)
    positive: str = choice("all", "all", "easy")
    negative: str = choice("all", "all", "distance_weighted")
    count: str | None = choice(None, "pairs", "triplets")
    cutoff: float = above_zero(0.5)
    nonzero_loss_cutoff: float = above_zero(1.4)
    uniforms: Tensor | None = None
    generator: torch.Generator | None = None

    @property
    def counted(self) -> str:
        return self.count or ("pairs" if self.positive == "easy" else "triplets")

    @property
    def distinct(self) -> bool:  # type: ignore[override]
        return self.counted == "pairs"

    def loss(self, pairs: Pairs) -> tuple[Tensor, Weighted]:
        beta = _boundary(pairs.op, self.beta, pairs.inputs)
        if self.negative == "all" or pairs.indices_tuple is not None:
            found = self._of_all(pairs, beta)
        else:
            found = self._of_drawn(pairs, beta)
        stats, pos_weight, neg_weight, triplets = found
        size = (pos_weight * stats.pos_slope + neg_weight * stats.neg_slope).sum()
        # 0 times NaN is NaN: a non-finite row reaches the loss whatever its weight.
        loss = mean(pos_weight * stats.pos + neg_weight * stats.neg, size)
        if isinstance(beta, Tensor):
            loss = loss + (0 * beta).sum()  # so does a β that is NaN, which no hinge is above
        nu = self._weight_of_beta()
        if nu == 0:
            return loss, found
        if isinstance(self.beta, Tensor) and self.beta.numel() > 1:
            return loss + nu * mean(triplets * beta, size) * (size > 0), found
        boundary = beta[:1].sum() if isinstance(beta, Tensor) else beta
        return loss + nu * boundary * (triplets.sum() > 0).to(loss.dtype), found

    def watched(self, found: Weighted) -> dict[str, Tensor]:
        stats, pos, neg = found.stats, found.pos_weight > 0, found.neg_weight > 0
        counts = {"pos_slope": pos * stats.pos_slope, "neg_slope": neg * stats.neg_slope}
        sums = {"pos_sum": pos * stats.pos_sum, "neg_sum": neg * stats.neg_sum}
        beta = self.beta.mean() if isinstance(self.beta, Tensor) else stats.pos.new_full((), self.beta)
        return {**super().watched(stats._replace(**counts, **sums)), "mean_beta": beta.detach()}

    def _weight_of_beta(self) -> float:
        return self.nu

    def _hinges(self, beta: float | Tensor) -> tuple[Side, Side, Tensor | None]:
        """[margin + d − β]₊, [margin + β − d]₊ and, of a tensor β (M,), their bounds (2, M)."""
        at = 0.0 if isinstance(beta, Tensor) else beta
        pos, neg = Side("hinge", 1.0, at - self.margin), Side("hinge", -1.0, at + self.margin)
        bounds = torch.stack([beta - self.margin, beta + self.margin]) if isinstance(beta, Tensor) else None
        return pos, neg, bounds

    def _of_all(self, pairs: Pairs, beta: float | Tensor) -> Weighted:
        """Of listed triplets every one counts ("triplets"), or each of their pairs once ("pairs")."""
        stats = pairs.statistics("distance", *self._hinges(beta))
        p, n, listed = stats.pos_members, stats.neg_members, pairs.indices_tuple
        if self.counted == "pairs":
            return _each_once(stats)
        if self.positive == "all" and isinstance(listed, (tuple, list)) and len(listed) == 3:
            return Weighted(stats, torch.ones_like(p), torch.ones_like(n), p)
        return Weighted(stats, n, p, n * p)

    def _of_drawn(self, pairs: Pairs, beta: float | Tensor) -> Weighted:
        """One drawn negative for each positive."""
        pos, neg, bounds = self._hinges(beta)
        found = pairs.statistics("distance", pos, None, bounds)
        m, device = len(found.pos), found.pos.device
        uniforms = self.uniforms
        if uniforms is None:
            draws = 1 if self.positive == "easy" else int(found.pos_members.max()) if m else 0
            # Where no generator is given, none may be named: a graph with symbolic sizes has no overload for it.
            given: dict[str, Any] = {} if self.generator is None else {"generator": self.generator}
            uniforms = torch.rand(m, draws, dtype=torch.float64, device=device, **given)
        far, check_finite = self.nonzero_loss_cutoff, pairs.check_finite
        index = sample_negatives(pairs.op, pairs.inputs, uniforms, self.cutoff, far, check_finite)
        draws = index.shape[1]
        index = torch.where(torch.arange(draws, device=device) < found.pos_members[:, None], index, -1)
        d, present = sampled_distance(pairs.inputs, index).flatten(), (index >= 0).flatten()
        row = torch.arange(m, device=device).repeat_interleave(draws)
        negatives = one_side(d, present, Listed(row, m), neg, None if bounds is None else bounds[1])
        return _each_once(Statistics.of(found.positives(), negatives))


def _each_once(stats: Statistics) -> Weighted:
    """Each pair of a query that has both kinds."""
    p, n = stats.pos_members, stats.neg_members
    both = (n > 0).to(n.dtype)
    return Weighted(stats, both, (p > 0).to(p.dtype), both * p)


def _boundary(op: str, beta: float | Tensor, inputs: _checks.PairInputs) -> float | Tensor:
    """β as a number, or of each query (M,). On a GPU, which is not waited for, a label without a β has NaN."""
    if not isinstance(beta, Tensor):
        return _checks.number(op, "beta", beta)
    _checks.floating(op, "beta", beta)
    labels, count = inputs.labels, beta.numel()
    if beta.ndim > 1:
        _checks.fail(op, "beta", "a number, or of shape () or (C,)", tuple(beta.shape))
    if beta.device != labels.device:
        _checks.fail(op, "beta", f"on {labels.device} like the embeddings", beta.device)
    beta = beta.to(compute_dtype(inputs.embeddings.dtype))
    if beta.ndim == 0 or count == 1:
        return beta.reshape(1).expand(len(labels))
    if inputs.ignore_index is not None:
        labels = torch.where(labels == inputs.ignore_index, 0, labels)
    _checks.class_labels(op, labels, count)
    inside = (labels >= 0) & (labels < count)
    return torch.where(inside, beta[labels.clamp(0, count - 1)], torch.nan)


def margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    beta: float | Tensor = 1.2,
    margin: float = 0.2,
    nu: float = 0.0,
    positive: str = "all",
    negative: str = "all",
    count: str | None = None,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Margin loss: [margin + d_ip − β]₊ of positive and [margin + β − d_in]₊ of negative pairs.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        beta: β, a number, a () tensor, or (C,) with a β for each class, at the query's label; differentiable.
        margin: δ.
        nu: ν of the term ν·β that keeps a learned β small. A β for each class is averaged over what the hinges are
            averaged over, once for each triplet of its queries ("pairs": once for each positive).
        positive: "all", or "easy": only the nearest positive of each query.
        negative: "all", or "distance_weighted": one negative for each positive of a query, drawn so that every distance
            is as likely as any other; that law is of normalised rows.
        count: "triplets" counts a pair once for each triplet that it is in, "pairs" once, both over the queries that
            have a positive and a negative. None: "pairs" with easy positives, "triplets" otherwise. Drawn negatives
            pair up with the positives, so both are the same.
        cutoff: distances below it count as this distance when negatives are drawn.
        nonzero_loss_cutoff: distance from which no negative is drawn.
        uniforms: (M, S) numbers in [0, 1) at which the negatives are drawn, at most S for each query. None draws S for
            the query with most positives, and so waits for a GPU to count them (easy positives need one).
        generator: of the uniforms, where they are None; on the embeddings' device. torch.compile takes none.

    Returns:
        () mean over the pairs that cost something, float32 (float64 for float64). Queries without a positive or without
        a negative (for "distance_weighted": one to draw) are left out; none left: 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Wu et al., "Sampling matters in deep embedding learning", ICCV 2017, eq. 4 and 5; "triplets" as
        pytorch-metric-learning averages; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> loss = F.margin_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8, positive="easy")
    """
    settings = Margin(
        beta, margin, nu, positive, negative, count, cutoff, nonzero_loss_cutoff, uniforms, generator,
        normalize=normalize, ignore_index=ignore_index, check_finite=check_finite,
    )  # fmt: skip
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class MarginLoss(Margin, PairLoss):
    """`margin_loss` as a module, with a β that it learns if asked.

    `positive="easy"` gives Easy Positive Sampling (EPS): with `count="triplets"` it is pytorch-metric-learning's
    BatchEasyHardMiner("easy", "all").

    Args:
        margin, nu: as in `margin_loss`; ν counts only where β is learned.
        beta: β, or what it is before training.
        learn_beta: make β a parameter `beta`, of shape (1,) or (num_classes,).
        num_classes: with `learn_beta`, a β for each class; labels are then in [0, num_classes).
        positive, negative, count, cutoff, nonzero_loss_cutoff, generator: as in `margin_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (ordered pairs that cost something), mean_pos_distance and
            mean_neg_distance over those pairs, and mean_beta.

    Example:
        >>> loss = losses.MarginLoss(learn_beta=True, num_classes=100, negative="distance_weighted")
        >>> loss(embeddings, labels).backward()
    """

    learn_beta: bool = Fixed(False, _checks.flag)  # type: ignore[assignment]
    num_classes: int | None = Fixed(None, _classes, optional=True)  # type: ignore[assignment]

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0.0,
        beta: float = 1.2,
        learn_beta: bool = False,
        num_classes: int | None = None,
        positive: str = "all",
        negative: str = "all",
        count: str | None = None,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        beta = _checks.number(self.op, "beta", beta)
        how = (positive, negative, count, cutoff, nonzero_loss_cutoff, None, generator)
        super().__init__(beta, margin, nu, *how, **options)
        self.learn_beta, self.num_classes = learn_beta, num_classes
        if learn_beta:
            self.beta = nn.Parameter(torch.full((num_classes or 1,), beta))

    def extra_repr(self) -> str:
        beta = tuple(self.beta.shape) if isinstance(self.beta, Tensor) else self.beta
        return f"beta={beta}, {super().extra_repr()}"

    def _weight_of_beta(self) -> float:
        return self.nu if self.learn_beta else 0.0
