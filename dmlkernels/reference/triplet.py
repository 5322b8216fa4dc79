r"""Triplet loss over lists of triplets in plain PyTorch, up to N×N·K memory.

$[d_{ip} - d_{in} + \delta]_+$ (or softplus) for each anchor i, chosen positive p and chosen negative n; with `swap`,
$d_{in}$ is the smaller of $d_{in}$ and $d_{pn}$. Semi-hard is relative to the positive of the triplet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import Pairs, pairs
from .nearest_positive import Contest, select_positive
from .pair_loss import softplus
from .pairwise import distance


def _only(index: Tensor, columns: int) -> Tensor:
    """Mask (T, N) of one column of each row, none where it is -1."""
    return index[:, None] == torch.arange(columns, device=index.device)[None, :]


def _listed(
    p: Pairs, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors (T,) of the anchor-positive pairs, terms (T, N) and the mask (T, N) of those that are triplets."""
    d = distance(p.f, p.g, p.positive | p.negative, p.norms)
    contest = Contest(p)
    if positive == "all":
        anchor, chosen = p.positive.nonzero(as_tuple=True)
    else:
        index = select_positive(p, contest, positive)
        anchor = (index >= 0).nonzero()[:, 0]
        chosen = index[anchor]
    d_ap, d_an = d[anchor, chosen][:, None], d[anchor]
    members = p.negative[anchor]
    if negative == "semihard":
        members = contest.beyond(anchor, chosen, members)
    if negative != "all":
        members = _only(contest.nearest(anchor, members), members.shape[1])
    if swap:
        d_an = torch.minimum(d_an, distance(p.g[chosen], p.g, norms=(p.norms[1][chosen], p.norms[1])))
    violation = d_ap - d_an + margin
    costs = softplus(violation) if soft else violation.relu()
    return anchor, torch.where(members, costs, 0), members


def triplet(
    inputs: PairInputs, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor]:
    """terms (T, N) and the mask (T, N) of those that are triplets; T anchor-positive pairs."""
    p = pairs(inputs)
    _, terms, members = _listed(p, positive, negative, margin, soft, swap)
    return torch.where(p.bad.any(), torch.nan, terms), members


def triplet_rows(
    inputs: PairInputs, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each anchor (M,): the sum of the terms, how many are not 0 and how many there are, both int64."""
    p = pairs(inputs)
    anchor, terms, members = _listed(p, positive, negative, margin, soft, swap)
    loss_sum = terms.new_zeros(len(p.f)).index_add(0, anchor, terms.sum(1))
    none = torch.zeros(len(p.f), dtype=torch.int64, device=terms.device)
    nonzero, count = (none.index_add(0, anchor, m.sum(1)) for m in (members & (terms.detach() != 0), members))
    return torch.where(p.bad, torch.nan, loss_sum), nonzero.masked_fill(p.bad, 0), count.masked_fill(p.bad, 0)
