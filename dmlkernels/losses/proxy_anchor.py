"""Proxy-Anchor loss as a module, with its proxies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.proxy_anchor import proxy_anchor_and_stats
from ._base import refuse_pairs


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
        loss, stats = proxy_anchor_and_stats(
            op, embeddings, labels, self.proxies, self.margin, self.alpha, self.normalize
        )
        neg_term = stats[1].sum() / max(len(self.proxies), 1)
        self.last_stats = {"pos_term": loss.detach() - neg_term, "neg_term": neg_term}
        return loss
