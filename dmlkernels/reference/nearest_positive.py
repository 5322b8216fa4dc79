r"""In-batch selection in plain PyTorch: Easy Positive Sampling (Levi et al., ICCV 2021) and its relatives.

$\mathrm{EP}(i) = \arg\min_{j:\,h_j = y_i} d_{ij}$ over the pairs that are not excluded; hardest positive: argmax;
hardest negative: argmin over $h_j \ne y_i$; semi-hard negative: nearest with $d_{in} > d$ of the chosen positive,
strictly. Ties go to the lowest index. The index is not differentiated, the chosen distance is, to both ends. Nothing to
choose: index -1, distance +inf.

Two squared distances that the product form cannot tell apart are compared in difference form, whose bits are the same
on every backend: all of them choose alike, and what is equal in exact arithmetic is a tie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import Pairs, pairs
from .pairwise import distance, in_a_vmap, squared_distance, sum_of_squares


class Contest:
    """Compares the squared distances (M, N) of the pairs."""

    def __init__(self, p: Pairs) -> None:
        self.p = p
        self.squared = squared_distance(p.f, p.g, p.positive | p.negative, p.norms).detach()
        if in_a_vmap(self.squared):
            raise RuntimeError(
                "the reference chooses rows by their distances, which torch.vmap cannot follow: go over the problems "
                "in a loop, or use the kernels, which have a vmap (dmlkernels.use_backend('auto'))"
            )
        # Two product forms of D roundings each are off by so much of the norms, with room to spare.
        share = torch.finfo(p.f.dtype).eps * (4 + 2 * p.f.shape[1] ** 0.5)
        self.band = share * (p.norms[0][:, None] + p.norms[1][None, :]).detach()

    def _exact(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances of the pairs (i, j). To a zero row it is the other's norm, which is 1 by definition."""
        of_f, of_g = self.p.norms[0].detach()[i], self.p.norms[1].detach()[j]
        difference = sum_of_squares((self.p.f[i] - self.p.g[j]).detach())
        return torch.where((of_f == 0) | (of_g == 0), of_f + of_g, difference)

    def nearest(self, anchor: Tensor, candidates: Tensor, farthest: bool = False) -> Tensor:
        """Index (T,) of the nearest (or farthest) candidate (T, N) of each anchor (T,), -1 for none."""
        if candidates.shape[1] == 0:
            return torch.full_like(anchor, -1)
        sign = -1 if farthest else 1
        key = torch.where(candidates, sign * self.squared[anchor], torch.inf)
        tied = candidates & (key <= key.amin(1, keepdim=True) + self.band[anchor])
        key = torch.where(tied, key, torch.inf)
        row, j = (tied & (tied.sum(1, keepdim=True) > 1)).nonzero(as_tuple=True)
        key = key.index_put((row, j), sign * self._exact(anchor[row], j))
        # argmax returns the first of equals
        first = ((key == key.amin(1, keepdim=True)) & tied).to(torch.int8).argmax(1)
        return torch.where(tied.any(1), first, -1)

    def beyond(self, anchor: Tensor, positive: Tensor, candidates: Tensor) -> Tensor:
        """The candidates (T, N) that are farther than the positive (T,) of each anchor (T,), none without one."""
        if candidates.shape[1] == 0:
            return candidates
        chosen = positive.clamp_min(0)
        limit = torch.where(positive >= 0, self.squared[anchor, chosen], torch.inf)
        gap = self.squared[anchor] - limit[:, None]
        farther = gap > 0
        row, j = (candidates & (gap.abs() <= self.band[anchor])).nonzero(as_tuple=True)
        exactly = self._exact(anchor[row], j) > self._exact(anchor, chosen)[row]
        return candidates & farther.index_put((row, j), exactly)


def _queries(p: Pairs) -> Tensor:
    return torch.arange(len(p.f), device=p.f.device)


def select_positive(p: Pairs, contest: Contest, positive: str) -> Tensor:
    """Index (M,) of each query's easy (nearest) or hard (farthest) positive, -1 for none."""
    return contest.nearest(_queries(p), p.positive, positive == "hard").masked_fill(p.bad, -1)


def _chosen(p: Pairs, d: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """distance (M,) and index (M,) as the operations return them."""
    found = index >= 0
    at_index = d[_queries(p), index.clamp_min(0)] if d.shape[1] else d.new_zeros(len(d))
    return torch.where(p.bad, torch.nan, torch.where(found, at_index, torch.inf)), index


def mine(inputs: PairInputs, positive: str, negative: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pos_distance, pos_index, neg_distance, neg_index, each (M,)."""
    p = pairs(inputs)
    d = distance(p.f, p.g, p.positive | p.negative, p.norms)
    contest = Contest(p)
    pos_index = select_positive(p, contest, positive)
    candidates = p.negative
    if negative == "semihard":
        candidates = contest.beyond(_queries(p), pos_index, candidates)
    neg_index = contest.nearest(_queries(p), candidates).masked_fill(p.bad, -1)
    return *_chosen(p, d, pos_index), *_chosen(p, d, neg_index)


def nearest_positive(inputs: PairInputs) -> tuple[Tensor, Tensor]:
    """distance (M,), index (M,)."""
    p = pairs(inputs)
    return _chosen(p, distance(p.f, p.g, p.positive, p.norms), select_positive(p, Contest(p), "easy"))
