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
from ._listed_statistics import listed_statistics, row_statistics, side_statistics
from ._sampled import sampled_distance


class Settings(NamedTuple):
    """The options of `margin_loss`, checked."""

    margin: float
    nu: float
    positive: str
    negative: str
    count: str  # pairs | triplets
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
        _checks.one_of(op, "count", count, ("pairs", "triplets", None))
        chosen = count or ("pairs" if positive == "easy" else "triplets")
        return Settings(*numbers, positive, negative, chosen, cutoff, nonzero_loss_cutoff)

    def hinges(self, beta: float | Tensor) -> Options:
        """[margin + d − β]₊ and [margin + β − d]₊; a tensor's boundaries come from `bounds`."""
        at = 0.0 if isinstance(beta, Tensor) else beta
        return Options("distance", "hinge", Side(1.0, at - self.margin), Side(-1.0, at + self.margin))

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
        return tuple((side * column).sum() for columns in (counts, distances) for side, column in zip(sides, columns))

    def loss(self, nu: float, beta: float | Tensor, per_class: bool) -> Tensor:
        """() mean over the pairs that cost something, and ν·β."""
        found = self.found
        size = (self.pos_weight * found.pos_slope + self.neg_weight * found.neg_slope).sum()
        # 0 times NaN is NaN: a non-finite row reaches the loss whatever its weight.
        loss = mean_of((self.pos_weight * found.pos + self.neg_weight * found.neg).sum(), size)
        if nu == 0:
            return loss
        if per_class:
            return loss + nu * mean_of((self.triplets * beta).sum(), size) * (size > 0)
        boundary = beta[:1].sum() if isinstance(beta, Tensor) else beta
        return loss + nu * boundary * (self.triplets.sum() > 0)


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


def _sampled(
    op: str,
    inputs: _checks.PairInputs,
    settings: Settings,
    beta: float | Tensor,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
    check_finite: bool,
) -> Weighted:
    """One drawn negative for each positive of a query."""
    hinges, bounds = settings.hinges(beta), settings.bounds(beta)
    found = row_statistics(op, inputs, hinges._replace(neg=None), settings.positive, bounds, check_finite)
    m = inputs.embeddings.shape[0]
    if uniforms is None:
        draws = 1 if settings.positive == "easy" else int(found.pos_members.max()) if m else 0
        device = inputs.embeddings.device
        uniforms = torch.rand(m, draws, dtype=torch.float64, device=device, generator=generator)
    index = sample_negatives(op, inputs, uniforms, settings.cutoff, settings.nonzero_loss_cutoff, check_finite)
    draw = torch.arange(index.shape[1], device=index.device)
    index = torch.where(draw < found.pos_members[:, None], index, -1)
    assert hinges.neg is not None
    row = torch.arange(m, device=index.device).repeat_interleave(index.shape[1])
    d, present = sampled_distance(inputs, index).flatten(), (index >= 0).flatten()
    drawn = side_statistics(d, row, m, hinges.neg, "hinge", None if bounds is None else bounds[1], present)
    found = found._replace(neg=drawn[0], neg_sum=drawn[1], neg_members=drawn[2], neg_slope=drawn[3])
    return Weighted.of(found, "pairs")


def weighted_statistics(
    op: str,
    inputs: _checks.PairInputs,
    settings: Settings,
    beta: float | Tensor,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
    check_finite: bool,
) -> Weighted:
    """Of the batch; β as `boundary_of` gives it."""
    if settings.negative == "distance_weighted":
        return _sampled(op, inputs, settings, beta, uniforms, generator, check_finite)
    hinges, bounds = settings.hinges(beta), settings.bounds(beta)
    found = row_statistics(op, inputs, hinges, settings.positive, bounds, check_finite)
    return Weighted.of(found, settings.count)


def listed_weighted(
    op: str, inputs: _checks.PairInputs, settings: Settings, beta: float | Tensor, indices_tuple: object
) -> Weighted:
    """Of the listed pairs; of listed triplets every one counts once ("triplets"), or each of their pairs."""
    found = listed_statistics(
        op,
        inputs.embeddings,
        inputs.ref_emb,
        indices_tuple,
        settings.hinges(beta),
        settings.bounds(beta),
        inputs.normalize,
        positive=settings.positive,
        distinct=settings.count == "pairs",
    )
    if settings.count == "triplets" and settings.positive == "all" and len(indices_tuple) == 3:  # type: ignore[arg-type]
        one = torch.ones_like(found.pos_members)
        return Weighted(found, one, one, found.pos_members)
    return Weighted.of(found, settings.count)
