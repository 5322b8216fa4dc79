r"""What a pair loss is made of, in plain PyTorch: statistics of each query, of its positives and of its negatives.

The value $v_{ij}$ of a pair is its similarity $s_{ij}$, its distance $d_{ij}$ or $d_{ij}^2$. With the bound $b_i$ of a
query, or one base for all, $x = \text{scale} \cdot (v - b)$, and each side has a term of its own:

- "exp": $\log \sum_j e^{\text{score}}$, $-\infty$ of none, with score = scale · ramp · (v − base). The factor ramp
  is 1, or $[\text{ramp} \cdot (v - \text{origin})]_+$ as a constant of the gradient (circle loss). Bounds mine: only
  pairs with $\text{scale} \cdot (v - b_i) > 0$ are kept;
- "hinge": $\sum_j [x]_+$, of slope 0 at $x = 0$;
- "softplus": $\sum_j \log(1 + e^x)$;
- "moment": $\sum_j p_j x_j$ over the pairs with $x > 0$, $p = \mathrm{softmax}(T x)$ among them and T the temperature
  (0: the plain mean), 0 of none; and its $\log \sum_j e^{T x_j}$. The weights p are constants of the gradient unless
  `weight_grad` (Ranked List Loss);
- "none": 0, as if the query had no such pairs.

Every loss of the family is a function of these: see `dmlkernels.losses`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ._pairs import Pairs, pairs
from .pairwise import distance, similarity, squared_distance


class Side(NamedTuple):
    """One side of the pairs: x = scale · (value − base), or − the bound of the query."""

    term: str  # exp | hinge | softplus | moment | none
    scale: float
    base: float = 0.0
    ramp: float = 0.0  # "exp": 0, or a factor [ramp · (value − origin)]₊ that is a constant of the gradient
    origin: float = 0.0
    temperature: float = 0.0  # "moment": T of the weights e^{T·x}


class OneSide(NamedTuple):
    """Of each query: (M,) of its positives or of its negatives, (2, M) of both."""

    stat: Tensor
    log_sum: Tensor
    sum: Tensor
    members: Tensor
    slope: Tensor


class ByQuery:
    """Which of the values of pairs are of which query: here those of a row of (M, N)."""

    def spread(self, of_queries: Tensor) -> Tensor:
        """To the pairs of each query."""
        return of_queries[:, None]

    def total(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return values.sum(1, dtype=dtype)

    def largest(self, values: Tensor) -> Tensor:
        """−∞ of none."""
        return values.amax(1) if values.shape[1] else values.new_full((values.shape[0],), -torch.inf)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) of every x: it is x itself from where e^−x is nothing beside it, and e^x is still a float32."""
    return torch.nn.functional.softplus(x, threshold=80)


def _log_sum_exp(scores: Tensor, kept: Tensor, by: ByQuery) -> Tensor:
    """log Σ e^score (M,) over the kept pairs, −∞ of none."""
    scores = torch.where(kept, scores, -torch.inf)
    top = by.largest(scores.detach())
    top = torch.where(top.isinf(), 0, top)
    sums = by.total((scores - by.spread(top)).exp())
    # A query without a pair is computed on 1: the logarithm of 0 has no gradient.
    some = ~(sums.detach() == 0)
    return torch.where(some, torch.where(some, sums, 1).log() + top, -torch.inf)


def one_side(
    v: Tensor, members: Tensor, by: ByQuery, side: Side, bound: Tensor | None = None, weight_grad: bool = False
) -> OneSide:
    """The statistics of one side from the values of pairs.

    Args:
        members: bool like v, which of the pairs are of this side; a value among them that is NaN reaches the loss.
        bound: (M,), differentiable but for "exp"; nothing is above one that is NaN.
        weight_grad: the weights of a "moment" are differentiated.
    """
    x = side.scale * (v - (side.base if bound is None else by.spread(bound.to(v.dtype))))
    violating = members & ((x.detach() > 0) | v.detach().isnan())
    log_sum = None
    taking_part = slope = violating
    if side.term == "exp":
        factor = side.scale * (side.ramp * (v.detach() - side.origin)).clamp_min(0) if side.ramp else side.scale
        taking_part = slope = members if bound is None else violating
        stat = _log_sum_exp(factor * (v - side.base), taking_part, by)
    elif side.term == "moment":
        scores = side.temperature * x
        log_sum = _log_sum_exp(scores, violating, by)
        logits = scores - by.spread(torch.where(log_sum.isinf(), 0, log_sum))
        weights = torch.where(violating, logits if weight_grad else logits.detach(), -torch.inf).exp()
        stat = by.total(torch.where(violating, weights * x, 0))
    elif side.term == "hinge":
        stat = by.total(torch.where(violating, x, 0))
    elif side.term == "softplus":
        taking_part, slope = members, torch.where(members, x.detach().sigmoid(), 0)
        stat = by.total(torch.where(members, softplus(x), 0))
    else:
        raise AssertionError(side.term)
    if log_sum is None:
        log_sum = torch.full_like(stat, -torch.inf)
    of_values = by.total(torch.where(taking_part, v, 0))
    return OneSide(stat, log_sum, of_values, by.total(members, v.dtype), by.total(slope, v.dtype))


def _values(p: Pairs, value: str) -> Tensor:
    wanted = p.positive | p.negative
    if value == "similarity":
        return similarity(p.f, p.g)
    measure = distance if value == "distance" else squared_distance
    return measure(p.f, p.g, wanted, p.norms)


def pair_loss(
    inputs: _checks.PairInputs,
    bounds: Tensor | None,
    classes: int | None,
    value: str,
    pos: Side,
    neg: Side,
    weight_grad: bool,
    grad: str,
    apart: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """stats, log_sums, sums, members, slopes, each (2, M), positives first.

    log_sums: of a "moment"; −∞ otherwise.
    sums: of the values of the pairs that take part: those kept ("exp"), with x > 0 ("hinge", "moment"), all
        ("softplus").
    members: pairs of the side.
    slopes: the sum of the term's derivative by x ("softplus"), otherwise how many take part.

    Args:
        bounds: (2, M) or None, of a side that is no "moment".
        classes: C; a label of a query or of the gallery outside [0, C) raises on a CPU and gives NaN elsewhere.
        grad: "full" sends the gradient of a pair to both ends, "query" to the query only.
        apart: coincident pairs are excluded.
    """
    for name, side in (("pos_term", pos), ("neg_term", neg)):
        if bounds is not None and side.term == "moment":
            _checks.fail("pair_loss", "bounds", f"None with {name} = moment", "a tensor")
    p = pairs(inputs)
    bad = p.bad
    if classes is not None:
        labels = {"labels": inputs.labels} | ({} if inputs.ref_labels is None else {"ref_labels": inputs.ref_labels})
        for name, given in labels.items():
            _checks.class_labels("pair_loss", given, classes, name)
        outside = [(given < 0) | (given >= classes) for given in labels.values()]
        bad = bad | torch.cat(outside).any()
    if grad == "query":
        p = p._replace(g=p.g.detach(), norms=(p.norms[0], p.norms[1].detach()))
    v = _values(p, value)
    if apart:
        away = v.detach() > 0 if value != "similarity" else _values(p, "squared").detach() > 0
        p = p._replace(positive=p.positive & away, negative=p.negative & away)
    sides = []
    for k, (side, members) in enumerate(((pos, p.positive), (neg, p.negative))):
        if side.term == "none":
            members, side = torch.zeros_like(members), side._replace(term="hinge")
        sides.append(one_side(v, members, ByQuery(), side, None if bounds is None else bounds[k], weight_grad))
    stats, log_sums, sums, members, slopes = (torch.stack(both) for both in zip(*sides))
    stats, log_sums, sums = (torch.where(bad[None, :], torch.nan, t) for t in (stats, log_sums, sums))
    members, slopes = (t.detach().masked_fill(bad[None, :], 0) for t in (members, slopes))
    return stats, log_sums, sums, members, slopes
