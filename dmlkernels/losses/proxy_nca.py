"""ProxyNCA: NCA against one proxy a class."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from .. import _checks
from .._options import above_zero, flag
from ..ops.pair_loss import Options, Side, Statistics, statistics
from ._pairs import mean, softmax_cost
from ._proxies import ProxyLoss, proxy_inputs


def _loss_and_statistics(
    op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor, softmax_scale: float, normalize: bool
) -> tuple[Tensor, Statistics]:
    inputs, _ = proxy_inputs(op, embeddings, labels, proxies, normalize)
    side = Side("exp", -_checks.positive(op, "softmax_scale", softmax_scale))
    stats = statistics(op, inputs, Options("squared", side, side, classes=len(proxies), neg_totals=True))
    cost, _ = softmax_cost(stats)
    return cost.sum() / max(len(labels), 1), stats


def proxy_nca_loss(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, softmax_scale: float = 1.0, normalize: bool = True
) -> Tensor:
    """ProxyNCA loss −log e^{−scale·d²(x, p_y)}/Σ_c e^{−scale·d²(x, p_c)}, over all proxies, that of the class included.

    Args:
        embeddings: (M, D) floating.
        labels: (M,) integers in [0, C): rows of `proxies`.
        proxies: (C, D), one for each class; differentiated.
        softmax_scale: factor of the squared distances; ProxyNCA++ takes 9.
        normalize: L2-normalise embeddings and proxies.

    Returns:
        () mean over the embeddings, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or a label outside [0, C) (on a GPU: a NaN loss).

    Source:
        Movshovitz-Attias et al., "No fuss distance metric learning using proxies", ICCV 2017, section 3, with the
        positive proxy in the denominator, as in Teh et al., "ProxyNCA++", ECCV 2020, and pytorch-metric-learning.

    Example:
        >>> proxies = torch.randn(10, 16, requires_grad=True)
        >>> F.proxy_nca_loss(torch.randn(64, 16), torch.arange(64) % 10, proxies).backward()
    """
    return _loss_and_statistics("proxy_nca_loss", embeddings, labels, proxies, softmax_scale, normalize)[0]


@dataclasses.dataclass(eq=False, repr=False)
class ProxyNCALoss(ProxyLoss):
    """`proxy_nca_loss` with proxies of its own, which have to be given to an optimiser.

    They usually learn with 10 to 100 times the learning rate of the network and without weight decay.

    Args:
        num_classes: C.
        embedding_size: D.
        softmax_scale: factor of the squared distances; ProxyNCA++ takes 9.
        normalize: L2-normalise embeddings and proxies.

    Attributes:
        proxies: (C, D) parameter, drawn by normal_, as pytorch-metric-learning draws it.
        last_stats: mean_pos_squared_distance and mean_neg_squared_distance of embeddings and proxies, detached.

    Raises:
        ValueError: in `forward` for a wrong shape, dtype or device, a label outside [0, C), and for a gallery, listed
            pairs or ids.

    Source:
        As of `proxy_nca_loss`.

    Example:
        >>> loss = losses.ProxyNCALoss(num_classes=100, embedding_size=64, softmax_scale=9)
        >>> optimiser = torch.optim.AdamW([{"params": loss.parameters(), "lr": 1e-2, "weight_decay": 0}])
        >>> loss(embeddings, labels).backward()
    """

    softmax_scale: float = above_zero(1.0)
    normalize: bool = flag(True)

    def __post_init__(self) -> None:
        self.proxies = nn.Parameter(torch.empty(self.num_classes, self.embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.proxies)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        arguments = (embeddings, labels, self.proxies, self.softmax_scale, self.normalize)
        loss, stats = _loss_and_statistics(self.op, *arguments)
        self.last_stats = {
            "mean_pos_squared_distance": mean(stats.pos_sum.detach(), stats.pos_members.sum()),
            "mean_neg_squared_distance": mean(stats.neg_sum.detach(), stats.neg_members.sum()),
        }
        return loss
