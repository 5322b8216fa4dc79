r"""Ranked List Loss in plain PyTorch (Wang et al., CVPR 2019, TPAMI 2021).

Non-trivial sets $P^*_i = \{j: h_j = y_i, d_{ij} > \alpha - m\}$ and $N^*_i = \{j: h_j \ne y_i, d_{ij} < \alpha\}$;
violations $v = d - (\alpha - m)$ and $\alpha - d$; weights $p_{ij} = \mathrm{softmax}_j(T v_{ij})$ inside each set;
$L_i = c_P \sum_{P^*} p_{ij} v_{ij} + c_N \sum_{N^*} p_{ij} v_{ij}$, an empty set gives 0.

The weights are constants of the gradient (the authors' code) unless `weight_grad`; `grad="query"` sends the gradient to
the query's end only. `eps_mode="pml"` adds 1e-5 for each gallery row to both denominators and leaves coincident pairs
out, as pytorch-metric-learning does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import PairInputs
from ._pairs import pairs
from .nearest_positive import select_positive
from .pairwise import distance

PML_EPS = 1e-5


def _set_loss(v: Tensor, members: Tensor, temperature: float, eps: Tensor, weight_grad: bool) -> Tensor:
    """Loss (M,) of one set."""
    scores = torch.where(members, temperature * v, -torch.inf)
    if not weight_grad:
        scores = scores.detach()
    log_eps = torch.where(eps > 0, eps, 1).log().masked_fill(eps == 0, -torch.inf).expand(len(v), 1)
    log_denom = torch.logsumexp(torch.cat([scores, log_eps], 1), 1)
    # An empty row is computed on zeros: log_denom is -inf there, and its gradient NaN.
    log_denom = torch.where(members.any(1), log_denom, 0)
    weights = torch.where(members, scores - log_denom[:, None], -torch.inf).exp()
    return torch.where(members, weights * v, 0).sum(1)


def ranked_list(
    inputs: PairInputs,
    alpha: float,
    margin: float,
    pos_temperature: float,
    neg_temperature: float,
    pos_weight: float,
    neg_weight: float,
    weight_grad: bool,
    grad: str,
    positive: str,
    eps_mode: str,
) -> tuple[Tensor, Tensor]:
    """loss (M,), totals (4,) as `_contract.TOTALS` names them."""
    p = pairs(inputs)
    g = p.g.detach() if grad == "query" else p.g
    d = distance(p.f, g, p.positive | p.negative)
    is_positive = p.positive
    if positive == "easy":
        chosen = select_positive(p, d, "easy")[1]
        is_positive = is_positive & (torch.arange(d.shape[1], device=d.device)[None, :] == chosen[:, None])

    boundary = alpha - margin
    in_pos = is_positive & (d.detach() > boundary)
    in_neg = p.negative & (d.detach() < alpha)
    eps = torch.zeros((), dtype=d.dtype, device=d.device)
    if eps_mode == "pml":
        in_pos, in_neg = in_pos & (d.detach() > 0), in_neg & (d.detach() > 0)
        eps = PML_EPS * p.gallery_size.to(d.dtype)
    loss_pos = _set_loss(d - boundary, in_pos, pos_temperature, eps, weight_grad)
    loss_neg = _set_loss(alpha - d, in_neg, neg_temperature, eps, weight_grad)
    loss = torch.where(p.bad, torch.nan, pos_weight * loss_pos + neg_weight * loss_neg)
    totals = [members.sum() for members in (in_pos, in_neg)]
    totals += [torch.where(members, d.detach(), 0).sum() for members in (in_pos, in_neg)]
    return loss, torch.stack([total.to(d.dtype) for total in totals])
