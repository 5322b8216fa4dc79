r"""What a pair loss is made of, in plain PyTorch: two statistics of each query, of its positives and of its negatives.

The value $v_{ij}$ of a pair is its similarity $s_{ij}$, its distance $d_{ij}$ or $d_{ij}^2$. With the bound $b_i$ of a
query, or one base for all, $x = \text{scale} \cdot (v - b)$, and of each side

- term "exp": $\log \sum_j e^{\text{score}}$, $-\infty$ of none, with score = scale · ramp · (v − base). The factor ramp
  is 1, or $[\text{ramp} \cdot (v - \text{origin})]_+$ as a constant of the gradient (circle loss). Bounds mine: only
  pairs with $\text{scale} \cdot (v - b_i) > 0$ are kept;
- term "hinge": $\sum_j [x]_+$;
- term "softplus": $\sum_j \log(1 + e^x)$.

Every loss of the family is a function of these: see `dmlkernels.losses`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import pairs
from .pairwise import distance, similarity, squared_distance


def _exp(
    v: Tensor, members: Tensor, bound: Tensor | None, scale: float, base: float, ramp: float, origin: float
) -> tuple[Tensor, Tensor, Tensor]:
    factor = scale * (ramp * (v.detach() - origin)).clamp_min(0) if ramp else scale
    kept = members if bound is None else members & (scale * (v.detach() - bound[:, None]) > 0)
    scores = torch.where(kept, factor * (v - base), -torch.inf)
    # An empty row is computed on zeros: logsumexp has no gradient there.
    some = kept.any(1)
    stat = torch.where(some, torch.logsumexp(torch.where(some[:, None], scores, 0), 1), -torch.inf)
    return stat, kept, kept.sum(1)


def _of_side(
    v: Tensor,
    members: Tensor,
    bound: Tensor | None,
    term: str,
    scale: float,
    base: float,
    ramp: float,
    origin: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """stat, sum, members and slope, each (M,), of one side."""
    if term == "exp":
        stat, taking_part, slope = _exp(v, members, bound, scale, base, ramp, origin)
    else:
        x = scale * (v - (base if bound is None else bound[:, None]))
        if term == "hinge":
            taking_part = members & (x.detach() > 0)
            stat, slope = torch.where(taking_part, x, 0).sum(1), taking_part.sum(1)
        else:
            taking_part = members
            stat = torch.where(members, torch.logaddexp(x, torch.zeros_like(x)), 0).sum(1)
            slope = torch.where(members, x.detach().sigmoid(), 0).sum(1)
    total = torch.where(taking_part, v, 0).sum(1)
    return stat, total, members.sum(1).to(v.dtype), slope.to(v.dtype)


def pair_loss(
    inputs: PairInputs,
    bounds: Tensor | None,
    value: str,
    term: str,
    sides: str,
    *sides_options: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """stats, sums, members, slopes, each (2, M), positives first.

    sums: of the values of the pairs that take part: those kept ("exp"), with x > 0 ("hinge"), all ("softplus").
    members: pairs of the side. slopes: of "exp" how many are kept, otherwise the sum of the term's derivative by x.

    Args:
        sides: "both", "positive" or "negative"; the other side is that of a query without such pairs.
        sides_options: scale, base, ramp and origin of the positives, then of the negatives.
    """
    p = pairs(inputs)
    if value == "similarity":
        v = similarity(p.f, p.g)
    elif value == "distance":
        v = distance(p.f, p.g, p.positive | p.negative)
    else:
        v = squared_distance(p.f, p.g, p.positive | p.negative)
    results = []
    for k, (side, members) in enumerate((("positive", p.positive), ("negative", p.negative))):
        wanted = members if sides in ("both", side) else torch.zeros_like(members)
        bound = None if bounds is None else bounds[k].to(v.dtype)
        results.append(_of_side(v, wanted, bound, term, *sides_options[4 * k : 4 * k + 4]))
    stats, sums, members, slopes = (torch.stack(of_sides) for of_sides in zip(*results))
    nothing = p.bad[None, :]
    return (
        torch.where(nothing, torch.nan, stats),
        torch.where(nothing, torch.nan, sums),
        members.detach().masked_fill(nothing, 0),
        slopes.detach().masked_fill(nothing, 0),
    )
