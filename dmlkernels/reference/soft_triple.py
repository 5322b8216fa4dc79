r"""SoftTriple loss in plain PyTorch, M×C·K memory (Qian et al., ICCV 2019).

With $s_{ick}$ the similarity of embedding i to center k of class c, $p_{ick}$ the softmax over k of $s_{ick}/\gamma$
and $S_{ic} = \sum_k p_{ick} s_{ick}$: $l_{ic} = \lambda (S_{ic} - \delta [c = y_i])$ and
$L_i = -\log (e^{l_{iy_i}} / \sum_c e^{l_{ic}}) = \log (1 + \sum_{c \ne y_i} e^{l_{ic} - l_{iy_i}})$.

Gradient: $\partial L_i/\partial S_{ic} = \lambda (q_{ic} - [c = y_i])$ with $q$ the softmax of $l$ over classes, and
$\partial S_{ic}/\partial s_{ick} = p_{ick} (1 + (s_{ick} - S_{ic})/\gamma)$.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import without_autocast
from .pairwise import rows


def _log_one_plus_sum(scores: Tensor, members: Tensor) -> Tensor:
    """log(1 + Σ e^score) (M,) over the members of each row of scores (M, C), exact where the sum is small."""
    scores = torch.where(members, scores, -torch.inf)
    shift = torch.cat([scores.detach(), torch.zeros_like(scores[:, :1])], 1).amax(1) if len(scores) else scores.sum(1)
    return shift + torch.log1p((scores - shift[:, None]).exp().sum(1) + torch.expm1(-shift))


@without_autocast
def soft_triple(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """loss (M,), row_stats (2, M): log of the sum of e^l over all classes, probability of the classes not its own."""
    f, w = rows(embeddings, normalize), rows(centers, normalize)
    classes = len(w) // centers_per_class
    s = (f @ w.T).view(len(f), classes, centers_per_class)
    similarity = ((s / gamma).softmax(2) * s).sum(2)
    own = labels[:, None] == torch.arange(classes, device=w.device)[None, :]
    logits = la * torch.where(own, similarity - margin, similarity)
    own_logit = torch.where(own, logits, 0).sum(1)
    loss = _log_one_plus_sum(logits - own_logit[:, None], ~own)

    norms = [torch.linalg.vector_norm(x.detach().to(f.dtype), dim=1) for x in (embeddings, centers)]
    good = torch.isfinite(norms[0]) & torch.isfinite(norms[1]).all() & ((labels >= 0) & (labels < classes))
    loss = torch.where(good, loss, torch.nan)
    return loss, torch.stack([own_logit + loss, -torch.expm1(-loss)]).detach()
