"""spherical_expansion: synthetic embeddings on the circle of latitude of a sample around its class's proxy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import spherical_expansion as reference
from ..reference.pairwise import compute_dtype, rows


class Expansion(NamedTuple):
    embeddings: Tensor  # (M*n, D), the n synthetics of row 0, then those of row 1, …
    labels: Tensor  # (M*n,)
    valid: Tensor  # (M,) bool; False where z = p: its rows are copies of z


def max_mahalanobis_centers(n: int) -> Tensor:
    """Max-Mahalanobis centres: the n + 1 vertices of a regular simplex in n dimensions.

    Args:
        n: at least 1.

    Returns:
        (n + 1, n) float64: unit rows, with dot products of −1/n.

    Raises:
        ValueError: for n below 1.

    Source:
        Pang et al., "Max-Mahalanobis linear discriminant analysis networks", ICML 2018, Algorithm 1.

    Example:
        >>> F.max_mahalanobis_centers(1)
        tensor([[ 1.],
                [-1.]], dtype=torch.float64)
    """
    return reference.max_mahalanobis_centers(_checks.whole("max_mahalanobis_centers", "n", n, 1))


def class_means(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum (M, D) of the unit rows of each row's class, detached, and the size (M,) of that class."""
    order = labels.argsort(stable=True)
    in_order = labels[order]
    starts = torch.ones_like(in_order)
    starts[1:] = (in_order[1:] != in_order[:-1]).to(starts.dtype)
    place = torch.empty_like(order).scatter(0, order, starts.cumsum(0) - 1)
    unit = rows(z.detach(), True)
    sums = torch.zeros_like(unit).index_add(0, place, unit)
    sizes = torch.zeros_like(place).index_add(0, place, torch.ones_like(place))
    return sums[place], sizes[place]


def own_proxies(op: str, labels: Tensor, proxies: Tensor) -> Tensor:
    """Proxy of the class of each label; NaN for a label outside [0, C) where that was not checked."""
    _checks.class_labels(op, labels, len(proxies))
    if len(labels) == 0:
        return proxies.new_empty(0, proxies.shape[1])
    known = (labels >= 0) & (labels < len(proxies))
    return torch.where(known[:, None], proxies[labels.clamp(0, len(proxies) - 1)], torch.nan)


def spherical_expansion(
    z: Tensor,
    labels: Tensor,
    proxies: Tensor | None = None,
    *,
    n: int = 8,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
    index: Tensor | None = None,
) -> Expansion:
    """Spherical Embedding Expansion: n synthetic embeddings of each sample, as similar to its proxy as the sample is.

    Args:
        z: (M, D) floating, L2-normalised inside; n + 1 ≤ D.
        labels: (M,) integers; rows of `proxies` where these are given.
        proxies: (C, D), L2-normalised inside and not differentiated; None: the mean unit embedding of the class in the
            batch, which leaves a class of one sample invalid.
        n: synthetics of a sample.
        noise: (M, n-1, D) from which the frames are made by Gram-Schmidt; None draws it from `generator`.
        differentiable: send the gradient of the synthetics back to z; the frames are constants of it.
        index: (k,) rows to expand, in this order; None: all. The M of noise and of the result is then k.

    Returns:
        Expansion(embeddings (M*n, D) unit rows in the common dtype of z and proxies, labels (M*n,), valid (M,)). Where
        z and its proxy coincide, up to 1e-6, there is no direction: the rows are copies of z and the flag is False.

    Raises:
        ValueError: for a wrong shape, dtype or device, or a label outside [0, C) (on a GPU: NaN rows).

    Source:
        Le & Woo, "Spherical embedding expansion", PAKDD 2024; centres: Pang et al., ICML 2018.

    Example:
        >>> more = F.spherical_expansion(torch.randn(6, 16), torch.arange(6) // 3, torch.randn(2, 16), n=4)
        >>> more.embeddings.shape
        torch.Size([24, 16])
    """
    op = "spherical_expansion"
    z = _checks.matrix(op, "z", z)
    labels = _checks.integers(op, "labels", labels, z, "M")
    n = _checks.whole(op, "n", n, 1)
    if n + 1 > z.shape[1]:
        _checks.fail(op, "n", f"at most D - 1 = {z.shape[1] - 1}", n)
    z = z if _checks.flag(op, "differentiable", differentiable) else z.detach()
    chosen = None if index is None else _row_index(op, index, z)
    if proxies is None:
        # Rounded to a narrow dtype, the mean of one sample would no longer be that sample.
        dtype, z = z.dtype, z.to(compute_dtype(z.dtype))
        means, sizes = class_means(z, labels)
        z, labels, own, alone = (t if chosen is None else t[chosen] for t in (z, labels, means, sizes == 1))
    else:
        proxies = _checks.matrix(op, "proxies", proxies, "(C, D)")
        _checks.same_width(op, z, proxies, "proxies", "(C, D)")
        dtype = torch.promote_types(z.dtype, proxies.dtype)
        z, labels = (t if chosen is None else t[chosen] for t in (z.to(dtype), labels))
        own, alone = own_proxies(op, labels, proxies.detach().to(dtype)), None

    shape = (len(z), n - 1, z.shape[1])
    if noise is None:
        # Where no generator is given, none may be named: a graph with symbolic sizes has no overload for it.
        given: dict[str, Any] = {} if generator is None else {"generator": generator}
        noise = torch.randn(shape, dtype=z.dtype, device=z.device, **given)
    elif not isinstance(noise, Tensor) or tuple(noise.shape) != shape:
        got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        _checks.fail(op, "noise", f"(M, n-1, D) = {shape}", got)
    else:
        _checks.floating(op, "noise", noise)
        if noise.device != z.device:
            _checks.fail(op, "noise", f"on {z.device} like z", noise.device)
    namespace = _backend.namespace(op, z.device)
    run = reference.spherical_expansion
    if namespace is not None:
        run = _library.forward(namespace, "spherical_expansion")
    out, valid = run(z, own, noise.detach().to(z.dtype), n)
    valid = valid if alone is None else valid & ~alone
    return Expansion(out.to(dtype), labels.repeat_interleave(n), valid)


def _row_index(op: str, index: object, z: Tensor) -> Tensor:
    """(k,) int64 rows of z. On a GPU, indexing itself reports a row that is not there."""
    if not isinstance(index, Tensor) or index.ndim != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
        _checks.fail(
            op, "index", "a (k,) tensor of row numbers", index if not isinstance(index, Tensor) else _name(index)
        )
    assert isinstance(index, Tensor)
    if len(index) and _checks.readable(index):
        low, high = (int(v) for v in index.aminmax())
        if low < 0 or high >= len(z):
            _checks.fail(op, "index", f"in [0, M) with M={len(z)}", low if low < 0 else high)
    return index.to(torch.int64)


def _name(x: Tensor) -> str:
    return f"{x.dtype} {tuple(x.shape)}"
