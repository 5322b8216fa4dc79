"""soft_triple: the SoftTriple loss, streamed over tiles of embeddings and centers that are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from .._contract import MAX_CENTERS_PER_CLASS
from ..reference import soft_triple as reference


def soft_triple_rows(
    op: str,
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """loss (M,), row_stats (2, M): log of the sum over the classes, and the probability of those not its own."""
    x = _checks.matrix(op, "embeddings", embeddings)
    y = _checks.integers(op, "labels", labels, x, "M")
    c = _checks.matrix(op, "centers", centers, "(C*K, D)")
    _checks.same_width(op, x, c, "centers", "(C*K, D)")
    k = _checks.whole(op, "centers_per_class", centers_per_class, 1, "a positive int")
    if len(c) % k != 0:
        _checks.fail(op, "centers", f"(C*K, D) with K={k}", tuple(c.shape))
    gamma = _checks.positive(op, "gamma", gamma)
    la, margin = _checks.number(op, "la", la), _checks.number(op, "margin", margin)
    _checks.flag(op, "normalize", normalize)
    _checks.some_class(op, y, len(c) // k)
    namespace = _backend.namespace(op, x.device)
    if namespace is not None and k > MAX_CENTERS_PER_CLASS:
        _checks.fail(op, "centers_per_class", f"at most {MAX_CENTERS_PER_CLASS} (the reference backend takes more)", k)
    common = torch.promote_types(x.dtype, c.dtype)
    arguments = (x.to(common), y, c.to(common), k, la, gamma, margin, normalize)
    if namespace is None:
        _checks.class_labels(op, y, len(c) // k)
        return reference.soft_triple(*arguments)
    forward = _library.forward(namespace, "soft_triple")
    return _checks.renamed(op, forward, *arguments, _backend.get_float32_precision())


def soft_triple_loss(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    centers_per_class: int = 10,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    normalize: bool = True,
) -> Tensor:
    """SoftTriple loss: cross-entropy over classes of several centers, each similarity softly that to the nearest.

    Args:
        embeddings: (M, D) floating.
        labels: (M,) integers in [0, C).
        centers: (C*K, D), K for each class, one class after the other; differentiated.
        centers_per_class: K, at most 128 (any number on the reference backend).
        la: λ, the scale of the logits.
        gamma: γ, the temperature of the softmax over the centers of a class.
        margin: δ, taken from the similarity of the own class.
        normalize: L2-normalise embeddings and centers.

    Returns:
        () mean loss of the rows, float32 (float64 for float64); 0 of no rows.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or a label outside [0, C) (on a GPU: a NaN loss).

    Source:
        Qian et al., "SoftTriple loss: deep metric learning without triplet sampling", ICCV 2019; without its
        regulariser of the number of centers (τ), as in pytorch-metric-learning.

    Example:
        >>> centers = torch.randn(10 * 3, 16, requires_grad=True)
        >>> x, labels = torch.randn(64, 16), torch.arange(64) % 10
        >>> F.soft_triple_loss(x, labels, centers, centers_per_class=3).backward()
    """
    op = "soft_triple_loss"
    loss, _ = soft_triple_rows(op, embeddings, labels, centers, centers_per_class, la, gamma, margin, normalize)
    return loss.sum() / max(len(loss), 1)
