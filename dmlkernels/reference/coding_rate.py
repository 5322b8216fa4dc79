r"""Coding rates (MCR², Yu et al., NeurIPS 2020) and the log-determinant under them, in plain PyTorch.

$R(Z) = \frac12 \log\det(I_D + a Z^T Z) = \frac12 \log\det(I_n + a Z Z^T)$, $a = \gamma D / (n \epsilon^2)$, $\gamma$
the gain; "official_proxy", the scale of the Anti-Collapse authors' code, is $a = \gamma n / (D \epsilon^2)$. The
smaller of the two Gram matrices is factored. $\partial R / \partial Z = a (I_n + a Z Z^T)^{-1} Z$.

Per class: $R_c = \sum_c \frac{n_c}{2n} \log\det(I + a_c Z_c^T Z_c)$, $a_c = D / (n_c \epsilon^2)$.

$\log\det A = 2 \sum_k \log L_{kk}$ for the Cholesky factor $A = L L^T$, $\partial \log\det A / \partial A = A^{-1}$.

Unit rows put the eigenvalues in $[1, 1 + a n]$. The error of a float32 gradient grows as 1e-8 times the condition
number, so float32 is left where nothing bounds that by 1e5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._precision import without_autocast
from .pairwise import compute_dtype, rows

MAX_CONDITION = 1e5  # up to which float32 factors


def rate_scale(n: int, width: int, eps_squared: float, gain: float, scale: str) -> float:
    """a of n rows."""
    return gain * (n / width if scale == "official_proxy" else width / n) / eps_squared


@without_autocast
def cholesky_logdet(A: Tensor, check: bool) -> Tensor:
    """logdet (B,) of A (B, n, n), whose lower triangle is read; NaN, or an error, where it is not positive definite."""
    A = A.to(compute_dtype(A.dtype))
    factor, info = torch.linalg.cholesky_ex(A.detach())
    good = (info == 0) & torch.isfinite(factor.diagonal(dim1=-2, dim2=-1)).all(-1)
    if check and not bool(good.all()):
        first = int((~good).to(torch.int8).argmax())
        raise RuntimeError(f"cholesky_logdet: A must be positive definite (check=True), got A[{first}] that is not")
    # Of a bad matrix the identity is factored, and the NaN comes in afterwards, for its value and its gradient.
    keep = good.to(A.dtype)[:, None, None]
    safe = A * keep + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) * (1 - keep)
    diagonal = torch.linalg.cholesky_ex(safe)[0].diagonal(dim1=-2, dim2=-1)
    return 2 * diagonal.log().sum(-1) * torch.where(good, 1.0, torch.nan).to(A.dtype)


def _half_logdet(f: Tensor, a: float) -> Tensor:
    """½ logdet(I + a fᵀf) of f (n, D), by the smaller Gram."""
    gram = f @ f.T if f.shape[0] <= f.shape[1] else f.T @ f
    eye = torch.eye(len(gram), dtype=f.dtype, device=f.device)
    return cholesky_logdet((eye + a * gram)[None], check=False)[0] / 2


def _prepare(z: Tensor, a: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """Rows in the dtype in which they are safely factored, and whether a norm is not finite."""
    dtype = compute_dtype(z.dtype)
    bad = ~torch.isfinite(torch.linalg.vector_norm(z.detach().to(dtype), dim=1)).all()
    bounded = normalize and 1 + a * z.shape[0] <= MAX_CONDITION
    return rows(z if bounded else z.double(), normalize), bad


@without_autocast
def coding_rate(z: Tensor, eps_squared: float, gain: float, scale: str, normalize: bool) -> Tensor:
    """R (), float32 (float64 for float64)."""
    n, width = z.shape
    a = rate_scale(n, width, eps_squared, gain, scale) if z.numel() else 0.0
    f, bad = _prepare(z, a, normalize)
    rate = _half_logdet(f, a) if z.numel() else f.sum()  # 0, with a gradient
    return torch.where(bad, torch.nan, rate).to(compute_dtype(z.dtype))


@without_autocast
def class_coding_rate(z: Tensor, labels: Tensor, eps_squared: float, normalize: bool) -> Tensor:
    """R_c (), float32 (float64 for float64); an empty class contributes nothing."""
    n, width = z.shape
    f, bad = _prepare(z, rate_scale(n, width, eps_squared, 1.0, "mcr2") if z.numel() else 0.0, normalize)
    rate = f[:0].sum()  # 0, with a gradient
    for label in labels.unique() if z.numel() else ():
        own = f[labels == label]
        rate = rate + len(own) / n * _half_logdet(own, rate_scale(len(own), width, eps_squared, 1.0, "mcr2"))
    return torch.where(bad, torch.nan, rate).to(compute_dtype(z.dtype))
