"""The row statistics of listed pairs (`indices_tuple`) and of one positive a query, as `ops.pair_loss` gives them.

A loss is finished the same way whether its statistics come from an operator or from here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..ops.nearest_positive import NearestPositive
from ..ops.pair_loss import OneSide, Options, Side, Statistics, statistics
from ..reference.pairwise import compute_dtype, rows
from ._listed import every_listed_pair, listed_distance, listed_pairs


def _values(left: Tensor, right: Tensor, value: str, normalize: bool) -> Tensor:
    """Value (L,) of the pairs of rows of left and right (L, D)."""
    if value == "distance":
        return listed_distance(left, right, normalize)
    f, g = rows(left, normalize), rows(right, normalize)
    return (f * g).sum(1) if value == "similarity" else (f - g).square().sum(1)


def row_extreme(values: Tensor, row: Tensor, count: int, kind: str) -> Tensor:
    """Largest ("amax") or smallest ("amin") value (count,) of each row's entries; −inf or +inf of none."""
    start = values.new_full((count,), -torch.inf if kind == "amax" else torch.inf)
    return start.scatter_reduce(0, row, values, kind)


def nearest_listed(distance: Tensor, anchor: Tensor, count: int) -> Tensor:
    """Places in the list of each anchor's smallest distance, the first of equals."""
    smallest = row_extreme(distance.detach(), anchor, count, "amin")[anchor]
    place = torch.arange(len(anchor), device=anchor.device)
    # The smallest of a NaN and others is NaN, which equals nothing, and its place must reach the loss.
    nearest = (distance.detach() == smallest) | distance.detach().isnan()
    first = torch.full((count,), len(anchor), device=anchor.device)
    first = first.scatter_reduce(0, anchor, torch.where(nearest, place, len(anchor)), "amin")
    return first[first < len(anchor)]


def side_statistics(
    v: Tensor,
    row: Tensor,
    count: int,
    side: Side,
    bound: Tensor | None = None,
    present: Tensor | None = None,
    weight_grad: bool = False,
) -> OneSide:
    """The statistics (count,) of one side from values v (L,), of which row (L,) are the queries.

    Args:
        bound: (count,), differentiable but for "exp".
        present: (L,) bool, which of the values there are; None: all.
        weight_grad: the weights of a "moment" are differentiated.
    """
    present = torch.ones_like(row, dtype=torch.bool) if present is None else present
    v = torch.where(present, v, 0)
    nothing = v.new_full((count,), -torch.inf)

    def total(values: Tensor) -> Tensor:
        return v.new_zeros(count).index_add(0, row, values.to(v.dtype))

    def log_sum_exp(scores: Tensor, kept: Tensor) -> Tensor:
        scores = torch.where(kept, scores, -torch.inf)
        top = row_extreme(scores.detach(), row, count, "amax")
        top = torch.where(top == -torch.inf, 0, top)
        sums = total((scores - top[row]).exp())
        # A row without a pair is computed on 1: the logarithm of 0 has no gradient.
        some = ~(sums.detach() == 0)
        return torch.where(some, torch.where(some, sums, 1).log() + top, -torch.inf)

    x = side.scale * (v - (side.base if bound is None else bound.to(v.dtype)[row]))
    violating = present & ~(x.detach() <= 0)  # NaN must reach the loss
    taking_part, slope, log_sum = violating, violating, nothing
    if side.term == "exp":
        taking_part = slope = present if bound is None else violating
        factor = side.scale * (side.ramp * (v.detach() - side.origin)).clamp_min(0) if side.ramp else side.scale
        stat = log_sum_exp(factor * (v - side.base), taking_part)
    elif side.term == "moment":
        scores = side.temperature * x
        log_sum = log_sum_exp(scores, violating)
        logits = scores - torch.where(log_sum.isinf(), 0, log_sum)[row]
        weights = torch.where(violating, logits if weight_grad else logits.detach(), -torch.inf).exp()
        stat = total(torch.where(violating, weights * x, 0))
    elif side.term == "hinge":
        stat = total(torch.where(violating, x, 0))
    else:
        taking_part, slope = present, torch.where(present, x.detach().sigmoid(), 0)
        stat = total(torch.where(present, torch.logaddexp(x, torch.zeros_like(x)), 0))
    return OneSide(stat, log_sum, total(torch.where(taking_part, v, 0)), total(present), total(slope))


def no_statistics(like: Tensor, count: int) -> OneSide:
    """Of a side that does not take part."""
    return side_statistics(like[:0], torch.zeros(0, dtype=torch.int64, device=like.device), count, Side("hinge", 1.0))


def listed_statistics(
    op: str,
    embeddings: Tensor,
    ref_emb: Tensor | None,
    indices_tuple: object,
    options: Options,
    bounds: Tensor | None,
    normalize: bool,
    *,
    positive: str = "all",
    distinct: bool = True,
) -> Statistics:
    """The statistics of each query over its listed pairs only; memory in the length of the list.

    Args:
        op: the public name, for errors.
        indices_tuple: (a1, positives, a2, negatives), or triplets (anchors, positives, negatives).
        bounds: (2, M) of the positives and of the negatives; differentiable for "hinge" and "softplus". For "exp" they
            mine.
        positive: "easy" keeps the nearest of each anchor's listed positives.
        distinct: a pair counts once, however often it is listed.
    """
    gallery = embeddings if ref_emb is None else ref_emb
    count = embeddings.shape[0]
    a1, p, a2, n = (listed_pairs if distinct else every_listed_pair)(op, indices_tuple, count, gallery.shape[0])
    if positive == "easy" and options.pos is not None:
        with torch.no_grad():
            place = nearest_listed(listed_distance(embeddings[a1], gallery[p], normalize), a1, count)
        a1, p = a1[place], p[place]
    sides = []
    for k, (side, anchor, other) in enumerate(((options.pos, a1, p), (options.neg, a2, n))):
        if side is None:
            sides.append(no_statistics(embeddings.new_zeros(0, dtype=compute_dtype(embeddings.dtype)), count))
            continue
        end = gallery.detach() if options.grad == "query" else gallery
        v = _values(embeddings[anchor], end[other], options.value, normalize)
        # Listed pairs have no exclusions but these; a NaN is kept, and reaches the loss.
        present = ~(v.detach() <= 0) if options.apart else None
        bound = None if bounds is None else bounds[k].to(v.dtype)
        sides.append(side_statistics(v, anchor, count, side, bound, present, options.weight_grad))
    return Statistics.of(*sides)


def rows_at(gallery: Tensor, index: Tensor) -> Tensor:
    """(L, D) rows at index (L,), zeros for -1: what is not chosen may be NaN, and must not reach a gradient."""
    if gallery.shape[0] == 0:
        return gallery.new_zeros(index.shape[0], gallery.shape[1])
    return torch.where((index >= 0)[:, None], gallery[index.clamp_min(0)], 0)


def easy_statistics(
    op: str,
    inputs: _checks.PairInputs,
    options: Options,
    nearest: NearestPositive,
    bounds: Tensor | None = None,
    check_finite: bool = False,
) -> Statistics:
    """`statistics` with the nearest positive of each query for its positives (Easy Positive Sampling).

    Args:
        op, options, bounds, check_finite: as in `statistics`; the positives take part.
        nearest: of `ops.nearest_positive.find_nearest`.
    """
    assert options.pos is not None
    v, index = nearest
    present = (index >= 0) | v.isnan()
    if options.value != "distance" or options.grad == "query":
        gallery = inputs.embeddings if inputs.ref_emb is None else inputs.ref_emb
        end = gallery.detach() if options.grad == "query" else gallery
        left = torch.where((index >= 0)[:, None], inputs.embeddings, 0)
        value = _values(left, rows_at(end, index), options.value, inputs.normalize)
        v = torch.where(v.isnan(), torch.nan, value)
    if options.apart:
        present = present & ~(v.detach() <= 0)
    row = torch.arange(len(index), device=index.device)
    bound = None if bounds is None else bounds[0].to(v.dtype)
    pos = side_statistics(v, row, len(index), options.pos, bound, present, options.weight_grad)
    if options.neg is None:
        return Statistics.of(pos, no_statistics(v, len(index)))
    negative = statistics(op, inputs, options._replace(pos=None), bounds, check_finite)
    return Statistics.of(pos, negative.negatives())
