r"""In-batch selection in plain PyTorch: Easy Positive Sampling (Levi et al., ICCV 2021) and its relatives.

$\mathrm{EP}(i) = \arg\min_{j:\,h_j = y_i} d_{ij}$ over the pairs that are not excluded; hardest positive: argmax;
hardest negative: argmin over $h_j \ne y_i$; semi-hard negative: nearest with $d_{in} > d$ of the chosen positive,
strictly. Ties go to the lowest index. The index is not differentiated, the chosen distance is, to both ends. Nothing to
choose: index -1, distance +inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import Pairs, pairs
from .pairwise import distance


def _select(d: Tensor, candidates: Tensor, largest: bool, bad: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and index (M,) of the nearest (or farthest) candidate of each row of d (M, N)."""
    if d.shape[1] == 0:
        none = d.new_full((d.shape[0],), torch.inf)
        return torch.where(bad, torch.nan, none), torch.full_like(none, -1, dtype=torch.int64)
    keyed = torch.where(candidates, d.detach(), -torch.inf if largest else torch.inf)
    best = keyed.amax(1, keepdim=True) if largest else keyed.amin(1, keepdim=True)
    index = ((keyed == best) & candidates).to(torch.int8).argmax(1)  # argmax returns the first of equals
    found = candidates.any(1) & ~bad
    chosen = torch.where(found, d.gather(1, index[:, None])[:, 0], torch.inf)
    return torch.where(bad, torch.nan, chosen), torch.where(found, index, -1)


def select_positive(p: Pairs, d: Tensor, positive: str) -> tuple[Tensor, Tensor]:
    """(distance, index) of each query's easy (nearest) or hard (farthest) positive."""
    return _select(d, p.positive, positive == "hard", p.bad)


def mine(inputs: PairInputs, positive: str, negative: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pos_distance, pos_index, neg_distance, neg_index, each (M,)."""
    p = pairs(inputs)
    d = distance(p.f, p.g, p.positive | p.negative)
    pos_distance, pos_index = select_positive(p, d, positive)
    candidates = p.negative
    if negative == "semihard":
        candidates = candidates & (d.detach() > pos_distance.detach()[:, None])
    neg_distance, neg_index = _select(d, candidates, False, p.bad)
    return pos_distance, pos_index, neg_distance, neg_index


def nearest_positive(inputs: PairInputs) -> tuple[Tensor, Tensor]:
    """distance (M,), index (M,)."""
    p = pairs(inputs)
    return select_positive(p, distance(p.f, p.g, p.positive), "easy")
