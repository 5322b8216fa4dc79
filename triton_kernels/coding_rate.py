"""cholesky and coding_rate: log-determinants with the inverses that their gradients are made of.

cholesky: several matrices of up to 64 rows to a program; larger ones go to torch.linalg.

coding_rate: labels are sorted on the device, and nobody on the host ever knows the size of a class. A class of up to 64
rows is one program: Gram matrix, inverse, log-determinant and the gradient of its rows. Programs find their classes
without a list: of the kernel for sizes from s to N, program p looks at row p·s of the sorted rows, since s rows in a
sequence hold exactly one multiple of s. The first multiple within a class does the work, the other programs return.
Larger classes, and all rows without labels, take the smaller Gram matrix block by block through a workspace of 2·M·D
numbers (`_large_classes`).

float32 sums are made of three TF32 products whatever the precision asked for, a lower bound of the accuracy; a Gram
matrix of less may not even be positive definite. Where nothing bounds its condition by 1e4, up to which a product with
the inverse is as accurate as triangular solves, it is float64's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlkernels.reference.coding_rate import rate_scale

from . import _configs, _large_classes, _pair, _rows, _sweep
from ._launch import launch

SMALL = 64  # largest matrix of one program
# Sizes of classes, smallest and largest, of one kernel; its warps, and the columns that it reads at a time.
BUCKETS = ((1, 16, 1, 64), (17, 32, 4, 32), (33, SMALL, 8, 32))
MAX_CONDITION = 1e4


@triton.jit(do_not_specialize=["M"])
def _classes(
    x_ptr,  # (M, D)
    scale_ptr,  # (M,)
    order_ptr,  # (M,) rows of x in the order of their labels
    begin_ptr,  # (M,) where the class of a sorted row begins
    end_ptr,  # (M,)
    rate_ptr,  # (M,) share of a class in the rate, at its first row
    grad_ptr,  # (M, D)
    M,
    gain: tl.float64,  # a of a class is gain / its size
    D: tl.constexpr,
    T: tl.constexpr,
    PRECISION: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    SMALLEST: tl.constexpr,
    N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    looked_at = tl.program_id(0).to(tl.int64) * SMALLEST
    begin, end = tl.load(begin_ptr + looked_at), tl.load(end_ptr + looked_at)
    size = (end - begin).to(tl.int32)
    if (looked_at - begin >= SMALLEST) | (size < SMALLEST) | (size > N):
        return
    gain = _pair.scalar(gain, T)
    place = tl.arange(0, N)
    ok = place < size
    rows = tl.load(order_ptr + begin + place, mask=ok, other=0)
    scale = tl.load(scale_ptr + rows, mask=ok, other=0.0)
    eye = tl.where(place[:, None] == place[None, :], 1.0, 0.0).to(T)
    zeros = tl.zeros((N, N), T)
    side = size
    if D < N:
        # The class fits into one tile, and more rows than columns have the smaller Gram matrix by columns.
        side = tl.minimum(size, D)
        f = _pair.load_rows(x_ptr, rows, ok, 0, D, N).to(T) * scale[:, None]
        gram = zeros
        if size > D:
            gram = _pair.dot(tl.trans(f), f, gram, PRECISION)
        else:
            gram = _pair.dot(f, tl.trans(f), gram, PRECISION)
    else:
        gram = _pair.tile_product(x_ptr, x_ptr, rows, rows, ok, ok, D, PRECISION, T, BLOCK_K)
        gram *= scale[:, None] * scale[None, :]
    inverse, logdet = _sweep.sweep(tl.reshape(eye + gain / size.to(T) * gram, (1, N, N)), side)
    inverse = gain / M.to(T) * tl.reshape(inverse, (N, N))
    tl.store(rate_ptr + begin + tl.arange(0, 1), 0.5 * size.to(T) / M.to(T) * logdet)
    if NEED_GRAD:
        if D < N:
            grad = zeros
            if size > D:
                grad = _pair.dot(f, inverse, grad, PRECISION)
            else:
                grad = _pair.dot(inverse, f, grad, PRECISION)
            tl.store(grad_ptr + rows[:, None] * D + place[None, :], grad, mask=ok[:, None] & (place < D)[None, :])
        else:
            for k in range(0, D, BLOCK_K):
                x = _pair.load_rows(x_ptr, rows, ok, k, D, BLOCK_K).to(T)
                grad = _pair.dot(inverse * scale[None, :], x, tl.zeros((N, BLOCK_K), T), PRECISION)
                c = k + tl.arange(0, BLOCK_K)
                tl.store(grad_ptr + rows[:, None] * D + c[None, :], grad, mask=ok[:, None] & (c < D)[None, :])


def cholesky_fwd(A: Tensor, check: bool, need_inverse: bool) -> tuple[Tensor, Tensor]:
    """-> logdet (B,), inverse (B, n, n) | (0, n, n)."""
    (batch, n, _), a = A.shape, A.contiguous()
    logdet, inverse = a.new_zeros(batch), a.new_empty(batch if need_inverse else 0, n, n)
    if n > SMALL:
        logdet, inverse = _by_linalg(a, need_inverse)
    elif batch and n:
        padded = _configs.power_of_two(n, 1, SMALL)
        # 2,048 numbers are 16 registers of each thread.
        matrices = max(1, (65536 if _configs.INTERPRETED else 2048) // padded**2)
        launch(_sweep.invert, (triton.cdiv(batch, matrices),))(
            a, logdet, inverse, batch, n, P=matrices, N=padded, NEED_INVERSE=need_inverse, num_warps=4
        )
    if check:
        bad = logdet.isnan()
        if bool(bad.any()):
            first = int(bad.to(torch.int8).argmax())
            raise RuntimeError(f"cholesky_logdet: A must be positive definite (check=True), got A[{first}] that is not")
    return logdet, inverse


def _by_linalg(a: Tensor, need_inverse: bool) -> tuple[Tensor, Tensor]:
    factor, info = torch.linalg.cholesky_ex(a)
    good = ((info == 0) & factor.diagonal(dim1=1, dim2=2).isfinite().all(1))[:, None, None]
    eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    factor = torch.where(good, factor, eye)
    logdet = torch.where(good[:, 0, 0], 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1), torch.nan)
    if not need_inverse:
        return logdet, a[:0]
    # Unlike cholesky_inverse, triangular solves do not wait for the device to say that they worked.
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(a), upper=False)
    inverse = torch.linalg.solve_triangular(factor.mT, inverse, upper=True)
    return logdet, torch.where(good, (inverse + inverse.mT) / 2, torch.nan)


def cholesky_bwd(grad_logdet: Tensor, inverse: Tensor) -> Tensor:
    """-> grad_A (B, n, n)."""
    return grad_logdet[:, None, None] * inverse


def _segments(labels: Tensor | None, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """order, begin, end (M,) int64 of the rows sorted by label; of one class without labels."""
    if labels is None:
        order = torch.arange(m, device=device)
        return order, torch.zeros_like(order), torch.full_like(order, m)
    found, order = torch.sort(labels, stable=True)
    return order, torch.searchsorted(found, found), torch.searchsorted(found, found, right=True)


def coding_rate_fwd(
    z: Tensor,
    labels: Tensor | None,
    eps_squared: float,
    gain: float,
    scale: str,
    normalize: bool,
    precision: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor]:
    """-> rate (), rate_grad (M, D) | (0, D)."""
    (m, d), dtype = z.shape, _rows.compute_dtype(z.dtype)
    if m == 0 or d == 0:
        return z.new_zeros((), dtype=dtype), torch.zeros_like(z if need_grad else z[:0])
    # a of a class is this over its size; the trace of a Gram matrix of unit rows is at most as much.
    gain = m * rate_scale(m, d, eps_squared, gain, scale if labels is None else "mcr2")
    wide = not normalize or 1 + gain > MAX_CONDITION
    rows = _rows.prepare(z.double() if wide else z, normalize, "ieee")
    order, begin, end = _segments(labels, m, z.device)
    rates = torch.zeros(m, dtype=rows.scale.dtype, device=z.device)
    grad = torch.empty(m if need_grad else 0, d, dtype=rates.dtype, device=z.device)
    arguments = (rows.x, rows.scale, order, begin, end, rates, grad, m, gain)
    constants = {
        "D": d,
        "T": _rows.triton_dtype(rows.x.dtype),
        "PRECISION": "ieee" if rows.x.dtype == torch.float64 else _configs.dot_precision("ieee"),
        "NEED_GRAD": need_grad,
    }
    for smallest, largest, warps, columns in BUCKETS:
        if smallest <= m and (labels is not None or m <= largest):
            programs = 1 if labels is None else triton.cdiv(m, smallest)
            block_k = _configs.power_of_two(d, 16, columns)
            launch(_classes, (programs,))(
                *arguments, **constants, SMALLEST=smallest, N=largest, BLOCK_K=block_k, num_warps=warps
            )
    if m > SMALL:
        _large_classes.rates_and_gradients(
            arguments, constants, 1 if labels is None else triton.cdiv(m, SMALL + 1), min(m, d)
        )
    lost = (rows.state != _pair.KEPT.value).any()
    rate = torch.where(lost, torch.nan, rates.sum(dtype=torch.float64)).to(dtype)
    if not need_grad:
        return rate, z.new_empty(0, d)
    sums = _rows.Sums(grad[None], torch.zeros(1, m, dtype=grad.dtype, device=z.device))
    return rate, _rows.finish_gradient(rows, sums, 1.0, normalize, lost).to(z.dtype)


def coding_rate_bwd(grad_rate: Tensor, rate_grad: Tensor) -> Tensor:
    """-> grad_z (M, D)."""
    return (grad_rate * rate_grad.to(grad_rate.dtype)).to(rate_grad.dtype)


OPERATORS = {
    "cholesky_fwd": cholesky_fwd,
    "cholesky_bwd": cholesky_bwd,
    "coding_rate_fwd": coding_rate_fwd,
    "coding_rate_bwd": coding_rate_bwd,
}
