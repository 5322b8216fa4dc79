r"""Triplet loss over lists of triplets in plain PyTorch, up to N×N·K memory.

$[d_{ip} - d_{in} + \delta]_+$ (or softplus) for each anchor i, chosen positive p and chosen negative n; with `swap`,
$d_{in}$ is the smaller of $d_{in}$ and $d_{pn}$. Semi-hard is relative to the positive of the triplet.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .._checks import PairInputs
from ._pairs import pairs
from .nearest_positive import select_positive
from .pairwise import distance


def _nearest(d: Tensor, candidates: Tensor) -> Tensor:
    """Mask of the first nearest candidate of each row."""
    keyed = torch.where(candidates, d.detach(), torch.inf)
    first = ((keyed == keyed.amin(1, keepdim=True)) & candidates).to(torch.int8).argmax(1)
    return candidates & (torch.arange(d.shape[1], device=d.device)[None, :] == first[:, None])


def triplet(
    inputs: PairInputs, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor]:
    """terms (T, N) and the mask (T, N) of those that are triplets; T anchor-positive pairs."""
    p = pairs(inputs)
    d = distance(p.f, p.g, p.positive | p.negative)
    if positive == "all":
        anchor, chosen = p.positive.nonzero(as_tuple=True)
    else:
        index = select_positive(p, d, positive)[1]
        anchor = (index >= 0).nonzero()[:, 0]
        chosen = index[anchor]
    d_ap, d_an = d[anchor, chosen][:, None], d[anchor]
    members = p.negative[anchor]
    if negative == "hard":
        members = _nearest(d_an, members)
    elif negative == "semihard":
        members = _nearest(d_an, members & (d_an.detach() > d_ap.detach()))
    if swap:
        d_an = torch.minimum(d_an, distance(p.g[chosen], p.g))
    violation = d_ap - d_an + margin
    terms = torch.where(members, nnf.softplus(violation) if soft else violation.clamp_min(0), 0)
    return torch.where(p.bad.any(), torch.nan, terms), members
