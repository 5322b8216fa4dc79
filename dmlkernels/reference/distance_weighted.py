r"""Distance-weighted negatives in plain PyTorch (Wu et al., ICCV 2017), N×N memory.

Distances of points drawn uniformly on the unit sphere have the density
$q(d) \propto d^{D-2} (1 - d^2/4)^{(D-3)/2}$. A negative of query $i$ is drawn with its inverse, so that every distance
is as likely as any other:
$P(j \mid i) \propto w_{ij} = [d_{ij} < \text{nonzero loss cutoff}] \, / \, q(\max(d_{ij}, \text{cutoff}))$, over the
negatives that are not excluded. The weights of a row are taken relative to its largest one: at D = 512 they span
hundreds of powers of e.

At a uniform $u \in [0, 1)$ the draw is the first $j$, ascending over the gallery, with
$\sum_{k \le j} w_{ik} > u \sum_k w_{ik}$: the inverse of the cumulative distribution. Within rounding of a step of it,
backends may choose either side. Index −1: a query without candidate, a query that is not finite, every query if a
gallery row is not finite, and a u outside [0, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import pairs
from .pairwise import squared_distance


def weights(inputs: PairInputs, cutoff: float, nonzero_loss_cutoff: float) -> Tensor:
    """(M, N) w relative to the largest of each row; rows of zeros where there is no candidate."""
    p = pairs(inputs)
    width = p.f.shape[1]
    squared = squared_distance(p.f, p.g, p.negative, p.norms)
    candidates = p.negative & (squared < nonzero_loss_cutoff**2) & ~p.bad[:, None]
    d = torch.where(candidates, squared, 1).sqrt().clamp_min(cutoff)
    rest = (1 - d.square() / 4).clamp_min(1e-30)  # positive, unless the cutoff rounds to 2
    log_density = (width - 2) * d.log() + (width - 3) / 2 * rest.log()
    log_weight = torch.where(candidates, -log_density, -torch.inf)
    if not log_weight.shape[1]:
        return log_weight
    largest = log_weight.amax(1, keepdim=True)
    return torch.where(candidates, log_weight - largest, -torch.inf).exp()


@torch.no_grad()
def sample_negatives(inputs: PairInputs, uniforms: Tensor, cutoff: float, nonzero_loss_cutoff: float) -> Tensor:
    """index (M, S) int64 at uniforms (M, S)."""
    none = torch.full(uniforms.shape, -1, dtype=torch.int64, device=uniforms.device)
    w = weights(inputs, cutoff, nonzero_loss_cutoff)
    if not w.shape[1]:
        return none
    cumulative, u = w.double().cumsum(1), uniforms.double()
    total = cumulative[:, -1:]
    index = torch.searchsorted(cumulative, u * total, right=True)
    return torch.where((total > 0) & (u >= 0) & (u < 1), index, none)
