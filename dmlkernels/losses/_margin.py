"""What margin loss is made of: its options, the boundary of each query, and weights of the row statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.distance_weighted import sample_negatives
from ..ops.pair_loss import Options, Side, Statistics
from ..reference.pairwise import compute_dtype
from ._base import mean_of
from ._listed_statistics import side_statistics
from ._rows import Source
from ._sampled import sampled_distance


class Settings(NamedTuple):
    """The options of `margin_loss`, checked."""

    margin: float
    nu: float
    positive: str
    negative: str
    counted: str  # pairs | triplets
    cutoff: float
    nonzero_loss_cutoff: float

    @staticmethod
    def checked(
        op: str,
        margin: float,
        nu: float,
        positive: str,
        negative: str,
        count: str | None,
        cutoff: float,
        nonzero_loss_cutoff: float,
    ) -> Settings:
        numbers = _checks.number(op, "margin", margin), _checks.number(op, "nu", nu)
        _checks.one_of(op, "positive", positive, ("all", "easy"))
        _checks.one_of(op, "negative", negative, ("all", "distance_weighted"))
        if count is not None:
            _checks.one_of(op, "count", count, ("pairs", "triplets"))
        chosen = count or ("pairs" if positive == "easy" else "triplets")
        return Settings(*numbers, positive, negative, chosen, cutoff, nonzero_loss_cutoff)

    def hinges(self, beta: float | Tensor) -> Options:
        """[margin + d − β]₊ and [margin + β − d]₊; a tensor's boundaries come from `bounds`."""
        at = 0.0 if isinstance(beta, Tensor) else beta
        return Options("distance", Side("hinge", 1.0, at - self.margin), Side("hinge", -1.0, at + self.margin))

    def bounds(self, beta: float | Tensor) -> Tensor | None:
        """(2, M) of a tensor β (M,)."""
        return torch.stack([beta - self.margin, beta + self.margin]) if isinstance(beta, Tensor) else None


class Weighted(NamedTuple):
    """The statistics, and how often the pairs of each query (M,) count."""

    found: Statistics
    pos_weight: Tensor
    neg_weight: Tensor
    triplets: Tensor  # that β belongs to, for its own term

    @staticmethod
    def of(found: Statistics, count: str) -> Weighted:
        p, n = found.pos_members, found.neg_members
        if count == "triplets":
            return Weighted(found, n, p, n * p)
        some = (n > 0).to(n.dtype)
        return Weighted(found, some, (p > 0).to(p.dtype), some * p)

    def totals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """How many positives and negatives cost something, and their summed distances, each ()."""
        found, sides = self.found, (self.pos_weight > 0, self.neg_weight > 0)
        counts, distances = (found.pos_slope, found.neg_slope), (found.pos_sum, found.neg_sum)
        pos, neg, pos_sum, neg_sum = (
            (side * column).sum() for columns in (counts, distances) for side, column in zip(sides, columns)
        )
        return pos, neg, pos_sum, neg_sum

    def loss(self, nu: float, beta: float | Tensor, per_class: bool) -> Tensor:
        """() mean over the pairs that cost something, and ν·β."""
        found = self.found
        size = (self.pos_weight * found.pos_slope + self.neg_weight * found.neg_slope).sum()
        # 0 times NaN is NaN: a non-finite row reaches the loss whatever its weight.
        loss = mean_of((self.pos_weight * found.pos + self.neg_weight * found.neg).sum(), size)
        if isinstance(beta, Tensor):
            loss = loss + (0 * beta).sum()  # so does a β that is NaN, which no hinge is above
        if nu == 0:
            return loss
        if per_class:
            return loss + nu * mean_of((self.triplets * beta).sum(), size) * (size > 0)
        boundary = beta[:1].sum() if isinstance(beta, Tensor) else beta
        return loss + nu * boundary * (self.triplets.sum() > 0).to(loss.dtype)


def boundary_of(op: str, beta: float | Tensor, inputs: _checks.PairInputs) -> float | Tensor:
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


def weighted_statistics(source: Source, settings: Settings, beta: float | Tensor) -> Weighted:
    """Of all pairs of the source; β as `boundary_of` gives it.

    Of listed triplets every one counts ("triplets"), or each of their pairs once ("pairs").
    """
    found = source.statistics(settings.hinges(beta), settings.bounds(beta))
    listed = source.indices_tuple
    whole = settings.counted == "triplets" and settings.positive == "all"
    if whole and isinstance(listed, (tuple, list)) and len(listed) == 3:
        one = torch.ones_like(found.pos_members)
        return Weighted(found, one, one, found.pos_members)
    return Weighted.of(found, settings.counted)


def drawn_statistics(
    source: Source,
    settings: Settings,
    beta: float | Tensor,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
) -> Weighted:
    """Of the source's positives, and one drawn negative for each of them."""
    op, inputs, check_finite = source.op, source.inputs, source.check_finite
    hinges, bounds = settings.hinges(beta), settings.bounds(beta)
    found = source.statistics(hinges._replace(neg=None), bounds)
    m, device = inputs.embeddings.shape[0], inputs.embeddings.device
    if uniforms is None:
        draws = 1 if settings.positive == "easy" else int(found.pos_members.max()) if m else 0
        uniforms = torch.rand(m, draws, dtype=torch.float64, device=device, generator=generator)
    index = sample_negatives(op, inputs, uniforms, settings.cutoff, settings.nonzero_loss_cutoff, check_finite)
    draws = index.shape[1]
    index = torch.where(torch.arange(draws, device=device) < found.pos_members[:, None], index, -1)
    row = torch.arange(m, device=device).repeat_interleave(draws)
    d, present = sampled_distance(inputs, index).flatten(), (index >= 0).flatten()
    assert hinges.neg is not None
    drawn = side_statistics(d, row, m, hinges.neg, None if bounds is None else bounds[1], present)
    found = Statistics.of(found.positives(), drawn)
    return Weighted.of(found, "pairs")
