"""coding_rate and cholesky: coding rates of features, the losses made of them, and the log-determinant under them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import coding_rate as reference
from ..reference.pairwise import compute_dtype

_underflow_was_told = False


def _fake_cholesky_fwd(A: Tensor, check: bool, need_inverse: bool) -> tuple[Tensor, Tensor]:
    batch, n, _ = A.shape
    return A.new_empty(batch), A.new_empty(batch if need_inverse else 0, n, n)


def _fake_cholesky_bwd(grad_logdet: Tensor, inverse: Tensor) -> Tensor:
    return inverse.new_empty(inverse.shape)


def _fake_rate_fwd(
    z: Tensor,
    labels: Tensor | None,
    eps_squared: float,
    gain: float,
    scale: str,
    normalize: bool,
    precision: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    rows, width = z.shape
    return z.new_empty((), dtype=compute_dtype(z.dtype)), z.new_empty(rows if need_grad else 0, width)


def _fake_rate_bwd(grad_rate: Tensor, rate_grad: Tensor) -> Tensor:
    return rate_grad.new_empty(rate_grad.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.kept, ctx.arguments = inputs[-1], len(inputs)


def _backward(bwd: Callable) -> Callable:
    def backward(ctx: Any, grad: Tensor | None, unused: None) -> tuple:
        none = (None,) * (ctx.arguments - 1)
        if grad is None:
            return None, *none
        if not ctx.kept:
            raise RuntimeError(f"{bwd}: the forward kept nothing to differentiate by, its last argument was False")
        return bwd(grad.contiguous(), *ctx.saved_tensors), *none

    return backward


def register() -> None:
    for op, fake_fwd, fake_bwd in (
        ("cholesky", _fake_cholesky_fwd, _fake_cholesky_bwd),
        ("coding_rate", _fake_rate_fwd, _fake_rate_bwd),
    ):
        _library.register(op, fake_fwd=fake_fwd, fake_bwd=fake_bwd, setup_context=_setup_context, backward=_backward)


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
    shape, n = A.shape[:-2], A.shape[-1]
    matrices = A.to(compute_dtype(A.dtype)).reshape(math.prod(shape), n, n)
    namespace = _backend.namespace(op, A.device)
    if namespace is None:
        return reference.cholesky_logdet(matrices, check).reshape(shape)
    forward = getattr(torch.ops, namespace).cholesky_fwd
    return forward(matrices, check, _needs_grad(matrices))[0].reshape(shape)


def _rate(
    op: str, z: Tensor, labels: Tensor | None, eps_squared: float, gain: float, scale: str, normalize: bool
) -> Tensor:
    """R, or R_c with labels, of checked arguments."""
    namespace = _backend.namespace(op, z.device)
    if namespace is None:
        if labels is None:
            return reference.coding_rate(z, eps_squared, gain, scale, normalize)
        return reference.class_coding_rate(z, labels, eps_squared, normalize)
    # The gradient is formed before it is scaled by the incoming one: in float16 it would underflow.
    z = z.to(compute_dtype(z.dtype))
    options = (eps_squared, gain, scale, normalize, _backend.get_float32_precision(), _needs_grad(z))
    return getattr(torch.ops, namespace).coding_rate_fwd(z, labels, *options)[0]


def _options(op: str, z: object, scale: str = "mcr2", **positive: float) -> tuple[Tensor, list[float]]:
    """z, and the numbers that have to be positive, checked."""
    checked = _checks.matrix(op, "z", z)
    _checks.one_of(op, "scale", scale, ("mcr2", "official_proxy"))
    return checked, [_checks.positive(op, name, value) for name, value in positive.items()]


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
    z, numbers = _options("coding_rate", z, scale, eps_squared=eps_squared, gain=gain)
    return _rate("coding_rate", z, None, *numbers, scale, normalize)


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
    z, (eps,) = _options(op, z, eps_squared=eps_squared)
    return _rate(op, z, _checks.integers(op, "labels", labels, z, "M"), eps, 1.0, "mcr2", normalize)


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
    z, (eps, factor) = _options(op, z, eps_squared=eps_squared, gain=gain)
    y = _checks.integers(op, "labels", labels, z, "M")
    return _rate(op, z, None, eps, factor, "mcr2", normalize) - _rate(op, z, y, eps, 1.0, "mcr2", normalize)


def anti_collapse_loss(
    z: Tensor,
    *,
    form: str = "neg_rate",
    gain: float = 1.0,
    rate_weight: float = 1.0,
    eps_squared: float = 0.5,
    scale: str = "mcr2",
    normalize: bool = True,
) -> Tensor:
    """Anti-Collapse term φ(R) of features or proxies: −R, or exp(−rate_weight·R).

    It prevents collapse and cannot undo it: at exact collapse its gradient is radial, hence 0 after the normalisation.
    The exponential form vanishes for most sizes (R = 110 for 90 random rows of width 512); a warning says so once.

    Args:
        z, eps_squared, scale, normalize: as in `coding_rate`.
        form: "neg_rate" or "exp_neg_rate" (the authors' code, with scale="official_proxy").
        gain: γ₁, the factor inside the logdet.
        rate_weight: γ₂, in "exp_neg_rate" only.

    Returns:
        () term, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype or option.

    Source:
        Jiang et al., "Anti-Collapse Loss for Deep Metric Learning Based on Coding Rate Metric", TMM 2024;
        the exponential form and the scale "official_proxy" are those of the authors' code.

    Example:
        >>> F.anti_collapse_loss(torch.eye(4))
        tensor(-2.1972)
    """
    return anti_collapse_and_rate("anti_collapse_loss", z, form, gain, rate_weight, eps_squared, scale, normalize)[0]


def anti_collapse_and_rate(
    op: str,
    z: Tensor,
    form: str,
    gain: float,
    rate_weight: float,
    eps_squared: float,
    scale: str,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """φ(R) and R."""
    _checks.one_of(op, "form", form, ("neg_rate", "exp_neg_rate"))
    z, numbers = _options(op, z, scale, eps_squared=eps_squared, gain=gain, rate_weight=rate_weight)
    weight = numbers.pop()
    rate = _rate(op, z, None, *numbers, scale, normalize)
    if form == "neg_rate":
        return -rate, rate
    if not torch.compiler.is_compiling():
        _tell_of_underflow(op, z, rate, weight, *numbers, scale, normalize)
    return (-weight * rate).exp(), rate


def _tell_of_underflow(
    op: str, z: Tensor, rate: Tensor, weight: float, eps_squared: float, gain: float, scale: str, normalize: bool
) -> None:
    """Warn, once, that exp(−weight·R) is 0; on a GPU, that it may become so, since its value is not waited for."""
    global _underflow_was_told
    if _underflow_was_told or z.numel() == 0:
        return
    if z.device.type == "cpu":
        value, verb = float(rate.detach()), "is"
    elif normalize:
        # Of unit rows, orthogonal ones have the largest rate.
        (n, width), side = z.shape, min(z.shape)
        value = side / 2 * math.log1p(reference.rate_scale(n, width, eps_squared, gain, scale) * n / side)
        verb = "can be as large as"
    else:
        return
    if weight * value <= -math.log(torch.finfo(rate.dtype).tiny):
        return
    _underflow_was_told = True
    warnings.warn(
        f"{op}: exp(-rate_weight * rate) underflows and then has no gradient: the rate of these {tuple(z.shape)} rows "
        f'{verb} {value:.0f}. Use form="neg_rate", or a smaller rate_weight',
        stacklevel=4,
    )
