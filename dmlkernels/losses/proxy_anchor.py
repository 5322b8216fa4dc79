"""Proxy-Anchor: a loss of pairs whose queries are the proxies, and whose gallery is the batch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from .. import _checks
from .._options import above_zero, flag, number
from ..ops.pair_loss import Options, Side, of_both_sides
from ..reference.pair_loss import softplus
from ._proxies import ProxyLoss, proxy_inputs


def _terms(
    op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float, alpha: float, normalize: bool
) -> Tensor:
    """(2, C) of the positives and of the negatives of each proxy; the loss is their sum."""
    _, inputs = proxy_inputs(op, embeddings, labels, proxies, normalize)
    alpha, margin = _checks.positive(op, "alpha", alpha), _checks.number(op, "margin", margin)
    sides, classes = (Side("exp", -alpha, margin), Side("exp", alpha, -margin)), proxies.shape[0]
    # The batch is the gallery.
    found = of_both_sides(
        op, inputs, Options("similarity", *sides, classes=classes, neg_totals=True), names={"ref_labels": "labels"}
    )
    count = found.members.count_nonzero(1)
    count[1] = classes
    return softplus(found.stat) / count.clamp_min(1)[:, None]


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
        ValueError: for a wrong shape, dtype, device or option, or a label outside [0, C) (on a GPU: a NaN loss; in a
            compiled graph the operator says so, whose `ref_labels` these labels are).

    Source:
        Kim et al., "Proxy anchor loss for deep metric learning", CVPR 2020, eq. 4.

    Example:
        >>> proxies = torch.randn(10, 16, requires_grad=True)
        >>> F.proxy_anchor_loss(torch.randn(64, 16), torch.arange(64) % 10, proxies).backward()
    """
    return _terms("proxy_anchor_loss", embeddings, labels, proxies, margin, alpha, normalize).sum()


@dataclasses.dataclass(eq=False, repr=False)
class ProxyAnchorLoss(ProxyLoss):
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

    margin: float = number(0.1)
    alpha: float = above_zero(32.0)
    normalize: bool = flag(True)

    def __post_init__(self) -> None:
        self.proxies = nn.Parameter(torch.empty(self.num_classes, self.embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        terms = _terms(self.op, embeddings, labels, self.proxies, self.margin, self.alpha, self.normalize)
        self.last_stats = dict(zip(("pos_term", "neg_term"), terms.detach().sum(1).unbind(0)))
        return terms.sum()
