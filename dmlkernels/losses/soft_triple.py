"""SoftTriple loss as a module, with its centers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops.soft_triple import soft_triple_rows
from ._base import refuse_pairs


class SoftTripleLoss(nn.Module):
    """`soft_triple_loss` with centers of its own, which have to be given to an optimiser.

    They usually learn with 10 to 100 times the learning rate of the network. It has no `.proxies`, since the centers of
    a class are several: around it, `AntiCollapseLoss` spreads the features.

    Args:
        num_classes: C.
        embedding_size: D.
        centers_per_class: K, at most 128 (any number on the reference backend).
        la: λ.
        gamma: γ.
        margin: δ.
        normalize: L2-normalise embeddings and centers.

    Attributes:
        centers: (C*K, D) parameter, K rows for each class, one class after the other. It starts as
            pytorch-metric-learning's `fc`, which is its transpose.
        last_stats: probability of the last forward, detached: the mean of that of the own class, after the margin.

    Raises:
        ValueError: in `forward` for a wrong shape, dtype, device or option, a label outside [0, C), and for a gallery,
            listed pairs or ids.

    Source:
        Qian et al., "SoftTriple loss: deep metric learning without triplet sampling", ICCV 2019; without its
        regulariser of the number of centers (τ), as in pytorch-metric-learning.

    Example:
        >>> loss = losses.SoftTripleLoss(num_classes=100, embedding_size=64)
        >>> optimiser = torch.optim.AdamW([{"params": loss.parameters(), "lr": 1e-2, "weight_decay": 0}])
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20,
        gamma: float = 0.1,
        margin: float = 0.01,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.centers_per_class = num_classes, centers_per_class
        self.la, self.gamma, self.margin, self.normalize = la, gamma, margin, normalize
        columns = torch.empty(embedding_size, num_classes * centers_per_class)
        nn.init.kaiming_uniform_(columns, a=math.sqrt(5))
        self.centers = nn.Parameter(columns.t().contiguous())
        self.last_stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        sizes = f"num_classes={self.num_classes}, embedding_size={self.centers.shape[1]}"
        options = f"la={self.la}, gamma={self.gamma}, margin={self.margin}, normalize={self.normalize}"
        return f"{sizes}, centers_per_class={self.centers_per_class}, {options}"

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
        op = "SoftTripleLoss"
        refuse_pairs(op, indices_tuple=indices_tuple, ref_emb=ref_emb, ref_labels=ref_labels, ids=ids, ref_ids=ref_ids)
        options = (self.centers_per_class, self.la, self.gamma, self.margin, self.normalize)
        loss, stats = soft_triple_rows(op, embeddings, labels, self.centers, *options)
        rows = max(len(loss), 1)
        self.last_stats = {"probability": 1 - stats[1].sum() / rows}
        return loss.sum() / rows
