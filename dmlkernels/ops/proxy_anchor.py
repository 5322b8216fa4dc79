"""proxy_anchor: the Proxy-Anchor loss, streamed over tiles of embeddings and proxies that are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks
from ..reference import proxy_anchor as reference


def proxy_anchor_and_stats(
    op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor, margin: float, alpha: float, normalize: bool
) -> tuple[Tensor, Tensor]:
    """`proxy_anchor_loss`, and proxy_stats (2, C): log(1 + sum) of the positives and of the negatives of each proxy."""
    x = _checks.matrix(op, "embeddings", embeddings)
    y = _checks.integers(op, "labels", labels, x, "M")
    p = _checks.matrix(op, "proxies", proxies, "(C, D)")
    _checks.same_width(op, x, p, "proxies", "(C, D)")
    _checks.class_labels(op, y, len(p))
    common = torch.promote_types(x.dtype, p.dtype)
    arguments = (x.to(common), y, p.to(common), float(margin), float(alpha), normalize)
    namespace = _backend.namespace(op, x.device)
    if namespace is None:
        return reference.proxy_anchor(*arguments)
    return getattr(torch.ops, namespace).proxy_anchor_fwd(*arguments, _backend.get_float32_precision())


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
        ValueError: for a wrong shape, dtype or device, or a label outside [0, C) (on a GPU: a NaN loss).

    Source:
        Kim et al., "Proxy anchor loss for deep metric learning", CVPR 2020, eq. 4.

    Example:
        >>> proxies = torch.randn(10, 16, requires_grad=True)
        >>> F.proxy_anchor_loss(torch.randn(64, 16), torch.arange(64) % 10, proxies).backward()
    """
    return proxy_anchor_and_stats("proxy_anchor_loss", embeddings, labels, proxies, margin, alpha, normalize)[0]
