r"""Proxy-Anchor loss in plain PyTorch, M×C memory (Kim et al., CVPR 2020, eq. 4).

With $s$ the similarity of embedding x to proxy p, $X_p^+$ the embeddings of its class, $P^+$ the proxies that have
some:
$L = \frac1{|P^+|} \sum_{p \in P^+} \log(1 + \sum_{x \in X_p^+} e^{-\alpha (s - \delta)})
+ \frac1{|P|} \sum_p \log(1 + \sum_{x \in X_p^-} e^{\alpha (s + \delta)})$.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import without_autocast
from .pairwise import rows


def log_one_plus_sum(scores: Tensor, members: Tensor) -> Tensor:
    """log(1 + Σ e^score) (C,) over the members of each column of scores (M, C), exact where the sum is small."""
    scores = torch.where(members, scores, -torch.inf)
    shift = torch.cat([scores.detach(), torch.zeros_like(scores[:1])]).amax(0) if len(scores) else scores.sum(0)
    return shift + torch.log1p((scores - shift).exp().sum(0) + torch.expm1(-shift))


@without_autocast
def proxy_anchor(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float, alpha: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """loss (), proxy_stats (2, C): log(1 + sum) of the positives and of the negatives of each proxy."""
    f, p = rows(embeddings, normalize), rows(proxies, normalize)
    classes = torch.arange(len(p), device=p.device)
    positive = labels[:, None] == classes[None, :]
    s = f @ p.T
    pos = log_one_plus_sum(-alpha * (s - margin), positive)
    neg = log_one_plus_sum(alpha * (s + margin), ~positive)
    loss = pos.sum() / positive.any(0).sum().clamp_min(1) + neg.sum() / max(len(p), 1)

    norms = [torch.linalg.vector_norm(x.detach().to(f.dtype), dim=1) for x in (embeddings, proxies)]
    good = torch.isfinite(torch.cat(norms)).all() & ((labels >= 0) & (labels < len(p))).all()
    return torch.where(good, loss, torch.nan), torch.stack([pos, neg]).detach()
