"""pairwise: the (M, N) similarities or distances of rows, normalised on the fly."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import pairwise as reference


def _pairwise(op: str, x: Tensor, y: Tensor | None, metric: str, normalize: bool) -> Tensor:
    x, normalize = _checks.matrix(op, "x", x), _checks.flag(op, "normalize", normalize)
    if y is not None:
        y = _checks.matrix(op, "y", y, "(N, D)")
        _checks.same_width(op, x, y, "y", "(N, D)")
        common = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(common), y.to(common)
    namespace = _backend.namespace(op, x.device)
    if namespace is None:
        return reference.pairwise(x, y, metric, normalize)
    return _library.forward(namespace, "pairwise")(x, y, metric, normalize, _backend.get_float32_precision())


def pairwise_similarity(x: Tensor, y: Tensor | None = None, *, metric: str = "cosine") -> Tensor:
    """Similarity of every row of x with every row of y.

    Args:
        x: (M, D) floating.
        y: (N, D); None compares x with itself.
        metric: "cosine" (rows are L2-normalised inside; a zero row has similarity 0) or "dot".

    Returns:
        (M, N) in the common dtype of x and y; products accumulate in float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype, device or metric.

    Example:
        >>> F.pairwise_similarity(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    _checks.one_of("pairwise_similarity", "metric", metric, ("cosine", "dot"))
    return _pairwise("pairwise_similarity", x, y, "dot", metric == "cosine")


def pairwise_distance(x: Tensor, y: Tensor | None = None, *, squared: bool = False, normalize: bool = False) -> Tensor:
    """Euclidean distance of every row of x to every row of y, accurate for near-duplicates too.

    Args:
        x: (M, D) floating.
        y: (N, D); None compares x with itself, with an exactly zero diagonal.
        squared: return squared distances.
        normalize: L2-normalise the rows first.

    Returns:
        (M, N) in the common dtype of x and y. Coincident rows get no gradient.

    Raises:
        ValueError: for a wrong shape, dtype, device or option.

    Example:
        >>> F.pairwise_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
        tensor([[0., 5.],
                [5., 0.]])
    """
    metric = "squared" if _checks.flag("pairwise_distance", "squared", squared) else "euclidean"
    return _pairwise("pairwise_distance", x, y, metric, normalize)
