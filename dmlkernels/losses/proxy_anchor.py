"""Proxy-Anchor: a loss of pairs whose queries are the proxies, and whose gallery is the batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.pair_loss import Options, Side, statistics
from ._base import refuse_pairs
from ._rows import mean, softplus, some


class Terms(NamedTuple):
    """() terms of the loss, which is their sum."""

    pos: Tensor
    neg: Tensor


def _terms(
    op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float, alpha: float, normalize: bool
) -> Terms:
    x = _checks.matrix(op, "embeddings", embeddings)
    y = _checks.integers(op, "labels", labels, x, "M")
    p = _checks.matrix(op, "proxies", proxies, "(C, D)")
    _checks.same_width(op, x, p, "proxies", "(C, D)")
    alpha, margin = _checks.positive(op, "alpha", alpha), _checks.number(op, "margin", margin)
    inputs = _checks.pair_inputs(op, p, torch.arange(len(p), device=p.device), x, y, normalize=normalize)
    sides = Side("exp", -alpha, margin), Side("exp", alpha, -margin)
    stats = statistics(op, inputs, Options("similarity", *sides, classes=len(p)))
    return Terms(mean(softplus(stats.pos), some(stats.pos).sum()), softplus(stats.neg).sum() / max(len(p), 1))


def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    normalize: bool = True,
) -> Tensor:
    """Proxy-Anchor loss: each proxy is an anchor that pulls the embeddings of its class and pushes all others.

    Of all proxies P and those P⁺ that have positives:
    Σ_{P⁺} log(1 + Σ_x e^{−α(s − δ)})/|P⁺| + Σ_P log(1 + Σ_x e^{α(s + δ)})/|P|.

    Args:
        embeddings: (M, D) floating.
        labels: (M,) integers in [0, C): rows of `proxies`.
        proxies: (C, D), one for each class; differentiated.
        margin: δ, added to the similarity of negatives and taken from that of positives.
        alpha: α, the scale of the exponents.
        normalize: L2-normalise embeddings and proxies.

    Returns:
        () loss, float32 (float64 for float64). The positive term averages over the proxies that have positives, the
        negative term over all.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or a label outside [0, C) (on a GPU: a NaN loss).

    Source:
        Kim et al., "Proxy anchor loss for deep metric learning", CVPR 2020, eq. 4.

    Example:
        >>> proxies = torch.randn(10, 16, requires_grad=True)
        >>> F.proxy_anchor_loss(torch.randn(64, 16), torch.arange(64) % 10, proxies).backward()
    """
    terms = _terms("proxy_anchor_loss", embeddings, labels, proxies, margin, alpha, normalize)
    return terms.pos + terms.neg


class ProxyAnchorLoss(nn.Module):
    """`proxy_anchor_loss` with proxies of its own, which have to be given to an optimiser.

    They usually learn with 10 to 100 times the learning rate of the network and without weight decay.

    Args:
        num_classes: C.
        embedding_size: D.
        margin: δ.
        alpha: α.
        normalize: L2-normalise embeddings and proxies.

    Attributes:
        proxies: (C, D) parameter, drawn by kaiming_normal_ with fan_out, as pytorch-metric-learning draws it.
        last_stats: pos_term and neg_term of the last forward, detached: the loss is their sum.

    Raises:
        ValueError: in `forward` for a wrong shape, dtype or device, a label outside [0, C), and for a gallery, listed
            pairs or ids.

    Source:
        Kim et al., "Proxy anchor loss for deep metric learning", CVPR 2020, eq. 4.

    Example:
        >>> loss = losses.ProxyAnchorLoss(num_classes=100, embedding_size=64)
        >>> optimiser = torch.optim.AdamW([{"params": loss.parameters(), "lr": 1e-2, "weight_decay": 0}])
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.margin, self.alpha, self.normalize = margin, alpha, normalize
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        self.last_stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        classes, width = self.proxies.shape
        options = f"margin={self.margin}, alpha={self.alpha}, normalize={self.normalize}"
        return f"num_classes={classes}, embedding_size={width}, {options}"

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
        *,
        ids: None = None,
        ref_ids: None = None,
    ) -> Tensor:
        """() loss of embeddings (M, D) and labels (M,) in [0, C)."""
        op = "ProxyAnchorLoss"
        refuse_pairs(op, indices_tuple=indices_tuple, ref_emb=ref_emb, ref_labels=ref_labels, ids=ids, ref_ids=ref_ids)
        terms = _terms(op, embeddings, labels, self.proxies, self.margin, self.alpha, self.normalize)
        self.last_stats = {"pos_term": terms.pos.detach(), "neg_term": terms.neg.detach()}
        return terms.pos + terms.neg
