"""SoftTriple loss as a module, with its centers."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from .._options import above_zero, flag, number, size
from ..ops.soft_triple import soft_triple_rows
from ._proxies import ProxyLoss


@dataclasses.dataclass(eq=False, repr=False)
class SoftTripleLoss(ProxyLoss):
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

    centers_per_class: int = size(10, "a positive int")
    la: float = number(20.0)
    gamma: float = above_zero(0.1)
    margin: float = number(0.01)
    normalize: bool = flag(True)

    def __post_init__(self) -> None:
        self.centers = nn.Parameter(torch.empty(self.num_classes * self.centers_per_class, self.embedding_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        columns = self.centers.new_empty(self.embedding_size, len(self.centers))
        self.centers.copy_(nn.init.kaiming_uniform_(columns, a=math.sqrt(5)).t())

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        options = (self.centers_per_class, self.la, self.gamma, self.margin, self.normalize)
        loss, stats = soft_triple_rows(self.op, embeddings, labels, self.centers, *options)
        rows = max(len(loss), 1)
        self.last_stats = {"probability": 1 - stats[1].sum() / rows}
        return loss.sum() / rows
