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
    """The options of one side, as the operator takes them."""

    term: str
    scale: float
    base: float
    ramp: float
    origin: float
    temperature: float


class OfSide(NamedTuple):
    """Of each query (M,)."""

    stat: Tensor
    log_sum: Tensor
    taking_part: Tensor  # (M, N) pairs whose values are summed up
    slope: Tensor


def _log_sum_exp(scores: Tensor, kept: Tensor) -> Tensor:
    """log Σ e^score (M,) over the kept pairs, −∞ of none."""
    # A row without pairs is computed on zeros: logsumexp has no gradient there.
    some = kept.any(1)
    scores = torch.where(some[:, None], torch.where(kept, scores, -torch.inf), 0)
    return torch.where(some, torch.logsumexp(scores, 1), -torch.inf)


def _of_side(v: Tensor, members: Tensor, bound: Tensor | None, side: Side, weight_grad: bool) -> OfSide:
    x = side.scale * (v - (side.base if bound is None else bound[:, None]))
    violating = members & (x.detach() > 0)
    nothing = x.new_full((x.shape[0],), -torch.inf)
    if side.term == "exp":
        factor = side.scale * (side.ramp * (v.detach() - side.origin)).clamp_min(0) if side.ramp else side.scale
        kept = members if bound is None else violating
        return OfSide(_log_sum_exp(factor * (v - side.base), kept), nothing, kept, kept.sum(1))
    if side.term == "moment":
        scores = side.temperature * x
        log_sum = _log_sum_exp(scores, violating)
        logits = scores - torch.where(log_sum.isinf(), 0, log_sum)[:, None]
        weights = torch.where(violating, logits if weight_grad else logits.detach(), -torch.inf).exp()
        return OfSide(torch.where(violating, weights * x, 0).sum(1), log_sum, violating, violating.sum(1))
    if side.term == "hinge":
        return OfSide(torch.where(violating, x, 0).sum(1), nothing, violating, violating.sum(1))
    if side.term == "softplus":
        stat = torch.where(members, torch.logaddexp(x, torch.zeros_like(x)), 0).sum(1)
        return OfSide(stat, nothing, members, torch.where(members, x.detach().sigmoid(), 0).sum(1))
    raise AssertionError(side.term)


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
    results = []
    for k, (side, members) in enumerate(((pos, p.positive), (neg, p.negative))):
        if side.term == "none":
            members, side = torch.zeros_like(members), side._replace(term="hinge")
        found = _of_side(v, members, None if bounds is None else bounds[k].to(v.dtype), side, weight_grad)
        total = torch.where(found.taking_part, v, 0).sum(1)
        results.append((found.stat, found.log_sum, total, members.sum(1).to(v.dtype), found.slope.to(v.dtype)))
    stats, log_sums, sums, members, slopes = (torch.stack(of_sides) for of_sides in zip(*results))
    stats, log_sums, sums = (torch.where(bad[None, :], torch.nan, t) for t in (stats, log_sums, sums))
    members, slopes = (t.detach().masked_fill(bad[None, :], 0) for t in (members, slopes))
    return stats, log_sums, sums, members, slopes
