"""ProxyNCA: NCA against one proxy a class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _checks
from ..ops.pair_loss import Options, Side, Statistics, statistics
from ._base import mean_of, refuse_pairs
from ._rows import softmax_cost


def _loss_and_statistics(
    op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor, softmax_scale: float, normalize: bool
) -> tuple[Tensor, Statistics]:
    x = _checks.matrix(op, "embeddings", embeddings)
    y = _checks.integers(op, "labels", labels, x, "M")
    gallery = _checks.matrix(op, "proxies", proxies, "(C, D)")
    _checks.same_width(op, x, gallery, "proxies", "(C, D)")
    classes = torch.arange(len(gallery), device=x.device)
    inputs = _checks.pair_inputs(op, x, y, gallery, classes, normalize=normalize)
    side = Side("exp", -_checks.positive(op, "softmax_scale", softmax_scale))
    stats = statistics(op, inputs, Options("squared", side, side, classes=len(gallery)))
    cost, _ = softmax_cost(stats)
    return cost.sum() / max(len(y), 1), stats


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


class ProxyNCALoss(nn.Module):
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

    def __init__(
        self, num_classes: int, embedding_size: int, softmax_scale: float = 1.0, normalize: bool = True
    ) -> None:
        super().__init__()
        self.softmax_scale = _checks.positive("ProxyNCALoss", "softmax_scale", softmax_scale)
        self.normalize = normalize
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.proxies)
        self.last_stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        classes, width = self.proxies.shape
        options = f"softmax_scale={self.softmax_scale}, normalize={self.normalize}"
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
        op = "ProxyNCALoss"
        refuse_pairs(op, indices_tuple=indices_tuple, ref_emb=ref_emb, ref_labels=ref_labels, ids=ids, ref_ids=ref_ids)
        loss, stats = _loss_and_statistics(op, embeddings, labels, self.proxies, self.softmax_scale, self.normalize)
        self.last_stats = {
            "mean_pos_squared_distance": mean_of(stats.pos_sum.detach().sum(), stats.pos_members.sum()),
            "mean_neg_squared_distance": mean_of(stats.neg_sum.detach().sum(), stats.neg_members.sum()),
        }
        return loss
