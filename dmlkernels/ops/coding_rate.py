"""coding_rate and cholesky: coding rates of features, and the log-determinant under them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import coding_rate as reference
from ..reference.pairwise import compute_dtype


def _needs_grad(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def cholesky_logdet(A: Tensor, *, check: bool = True) -> Tensor:
    """Log-determinant of symmetric positive definite matrices, of which the lower triangle is read.

    Args:
        A: (..., n, n) floating; bfloat16 and float16 are factored in float32.
        check: raise for a matrix that is not positive definite (this waits for the device); otherwise its entry, and
            its gradient, are NaN, and the other entries are not touched.

    Returns:
        (...) float32 (float64 for float64). Its gradient is the symmetric A⁻¹.

    Raises:
        ValueError: for a wrong shape or dtype.
        RuntimeError: with `check`, naming the matrix by its index in the flattened batch.

    Source:
        log det A = 2 Σ log L_kk for A = L Lᵀ.

    Example:
        >>> F.cholesky_logdet(2 * torch.eye(3))
        tensor(2.0794)
    """
    op = "cholesky_logdet"
    if not isinstance(A, Tensor):
        _checks.fail(op, "A", "a (..., n, n) tensor", type(A).__name__)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        _checks.fail(op, "A", "(..., n, n)", tuple(A.shape))
    _checks.floating(op, "A", A)
    check = _checks.flag(op, "check", check)
    shape, n = A.shape[:-2], A.shape[-1]
    matrices = A.to(compute_dtype(A.dtype)).reshape(math.prod(shape), n, n)
    namespace = _backend.namespace(op, A.device)
    if namespace is None:
        return reference.cholesky_logdet(matrices, check).reshape(shape)
    forward = _library.forward(namespace, "cholesky")
    return forward(matrices, check, _needs_grad(matrices))[0].reshape(shape)


class RateOptions(NamedTuple):
    """The options of a rate as the operator takes them."""

    eps_squared: float
    gain: float
    scale: str
    normalize: bool


def rate_options(
    op: str, eps_squared: float, gain: float = 1.0, scale: str = "mcr2", normalize: bool = True
) -> RateOptions:
    """The options, checked."""
    _checks.one_of(op, "scale", scale, ("mcr2", "official_proxy"))
    numbers = _checks.positive(op, "eps_squared", eps_squared), _checks.positive(op, "gain", gain)
    return RateOptions(*numbers, scale, _checks.flag(op, "normalize", normalize))


def rate_of(op: str, z: Tensor, labels: Tensor | None, options: RateOptions) -> Tensor:
    """R, or R_c with labels, of checked arguments."""
    namespace = _backend.namespace(op, z.device)
    if namespace is None:
        if labels is None:
            return reference.coding_rate(z, *options)
        return reference.class_coding_rate(z, labels, options.eps_squared, options.normalize)
    # The gradient is formed before it is scaled by the incoming one: in float16 it would underflow.
    z = z.to(compute_dtype(z.dtype))
    forward = _library.forward(namespace, "coding_rate")
    return forward(z, labels, *options, _backend.get_float32_precision(), _needs_grad(z))[0]


def coding_rate(
    z: Tensor, *, eps_squared: float = 0.5, gain: float = 1.0, scale: str = "mcr2", normalize: bool = True
) -> Tensor:
    """Coding rate R = ½ logdet(I + a ZᵀZ) of all rows.

    Args:
        z: (M, D) floating.
        eps_squared: ε², the squared distortion that the code allows ("eps" in the released codes).
        gain: factor on a.
        scale: "mcr2": a = gain·D/(M ε²); "official_proxy": a = gain·M/(D ε²), as in the Anti-Collapse authors' code.
        normalize: L2-normalise the rows.

    Returns:
        () rate, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype or option.

    Source:
        Yu et al., "Learning diverse and discriminative representations via the principle of maximal coding rate
        reduction", NeurIPS 2020, §2.1.

    Example:
        >>> F.coding_rate(torch.eye(4))
        tensor(2.1972)
    """
    op = "coding_rate"
    return rate_of(op, _checks.matrix(op, "z", z), None, rate_options(op, eps_squared, gain, scale, normalize))


def class_coding_rate(z: Tensor, labels: Tensor, *, eps_squared: float = 0.5, normalize: bool = True) -> Tensor:
    """Coding rate R_c = Σ_c n_c/(2M) logdet(I + a_c Z_cᵀZ_c), a_c = D/(n_c ε²), of the rows class by class.

    Args:
        z, eps_squared, normalize: as in `coding_rate`.
        labels: (M,) integers, in any order.

    Returns:
        () rate, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype, device or option.

    Source:
        Yu et al., NeurIPS 2020, §2.1, the rate of a partition.

    Example:
        >>> F.class_coding_rate(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(1.6094)
    """
    op = "class_coding_rate"
    z = _checks.matrix(op, "z", z)
    y = _checks.integers(op, "labels", labels, z, "M")
    return rate_of(op, z, y, rate_options(op, eps_squared, normalize=normalize))


def coding_rate_reduction(
    z: Tensor, labels: Tensor, *, eps_squared: float = 0.5, gain: float = 1.0, normalize: bool = True
) -> Tensor:
    """Rate reduction ΔR = R(gain) − R_c: how much larger the whole is than the sum of its classes.

    Args:
        z, eps_squared, normalize: as in `coding_rate`.
        labels: (M,) integers, in any order.
        gain: factor on a in R, not in R_c.

    Returns:
        () reduction, float32 (float64 for float64), to be maximised.

    Raises:
        ValueError: for a wrong shape, dtype, device or option.

    Source:
        Yu et al., NeurIPS 2020, §2.2.

    Example:
        >>> F.coding_rate_reduction(torch.eye(4), torch.tensor([0, 0, 1, 1]))
        tensor(0.5878)
    """
    op = "coding_rate_reduction"
    rate, class_rate = reduction_terms(op, z, labels, rate_options(op, eps_squared, gain, normalize=normalize))
    return rate - class_rate


def reduction_terms(op: str, z: Tensor, labels: Tensor, options: RateOptions) -> tuple[Tensor, Tensor]:
    """R(gain) and R_c."""
    z = _checks.matrix(op, "z", z)
    y = _checks.integers(op, "labels", labels, z, "M")
    return rate_of(op, z, None, options), rate_of(op, z, y, options._replace(gain=1.0))
