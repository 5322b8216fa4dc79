"""Rows made ready for tile products, and gradients of such rows turned back into the caller's tensors."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _pair
from ._configs import power_of_two, row_block
from ._launch import launch
from ._pair import IGNORED, KEPT, NON_FINITE


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of one matrix. f = x · scale are the rows that the operation is about."""

    x: Tensor  # (rows, D) contiguous, as the caller gave it
    operand: Tensor  # (rows, D) what products take: x, or x rounded
    scale: Tensor  # (rows,) 1 / max(norm, 1e-12), or 1
    inverse: Tensor  # (rows,) the same, but 0 for rows that are zero
    norms: Tensor  # (rows,) squared norm of operand · scale, 1 by definition of normalised rows that are not rounded
    state: Tensor  # (rows,) int32: KEPT, IGNORED or NON_FINITE

    @property
    def count(self) -> int:
        return self.x.shape[0]

    @property
    def width(self) -> int:
        return self.x.shape[1]


SHORTEST = tl.constexpr(1e-12)  # the norm that a row is divided by at least


# Rounded as on every other backend: Triton's own root and quotient of float32 are off by a few ulps.


@triton.jit
def root(x):
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def quotient(a, b):
    return tl.div_rn(a, b) if b.dtype == tl.float32 else a / b


@triton.jit(do_not_specialize=["M", "ignore_index"])
def _prepare(
    x, labels, operand, scale_out, inverse_out, norms_out, state_out, M, ignore_index, largest: tl.float64,
    D: tl.constexpr, NORMALIZE: tl.constexpr, IGNORE: tl.constexpr, DROPPED: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < M
    ok = inside
    if IGNORE:
        ok = inside & (tl.load(labels + rows, mask=inside, other=0) != ignore_index)
    exact = tl.zeros((BLOCK_M, 16), DTYPE)
    rounded = tl.zeros((BLOCK_M, 16), DTYPE)
    scaled = tl.zeros((BLOCK_M, 16), DTYPE)
    shortest = _pair.scalar(SHORTEST, DTYPE)
    for k in range(0, D, 16):
        values = _pair.load_rows(x, rows, ok, k, D, 16).to(DTYPE)
        exact = _pair.add_squares(exact, values)
        scaled = _pair.add_squares(scaled, values * quotient(1.0, shortest))
        if DROPPED > 0:
            values = _pair.keep_bits(values, DROPPED)
            rounded = _pair.add_squares(rounded, values)
            columns = k + tl.arange(0, 16)
            mask = ok[:, None] & (columns < D)[None, :]
            _pair.store_as(operand + rows[:, None] * D + columns[None, :], values, mask)
    exact = _pair.add_halves(exact)
    # Without normalising, squared distances must be finite too. A NaN is not below the limit.
    finite = exact <= _pair.scalar(largest, DTYPE)
    squares = exact if DROPPED == 0 else _pair.add_halves(rounded)
    if NORMALIZE:
        norm = root(exact)
        scale = quotient(1.0, tl.maximum(norm, shortest))
        inverse = tl.where(norm > shortest, scale, 0.0)
        # 1 by definition where the product is as accurate as the rows, and NaN where the norm is not finite.
        unit = tl.where(norm < float("inf"), 1.0, float("nan")).to(DTYPE)
        squares = unit if DROPPED == 0 else squares * scale * scale
        squares = tl.where(norm < shortest, _pair.add_halves(scaled), squares)
    else:
        scale = tl.full((BLOCK_M,), 1.0, DTYPE)
        inverse = scale
    tl.store(scale_out + rows, scale, mask=inside)
    tl.store(inverse_out + rows, inverse, mask=inside)
    tl.store(norms_out + rows, squares, mask=inside)
    tl.store(state_out + rows, tl.where(ok, tl.where(finite, KEPT, NON_FINITE), IGNORED), mask=inside)


def tie_share(dtype: torch.dtype, width: int) -> float:
    """Two product forms of `width` roundings each may be off by so much of their norms, with room to spare."""
    return torch.finfo(compute_dtype(dtype)).eps * (4 + 2 * width**0.5)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The type that kernels compute in for rows of a dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def prepare(
    x: Tensor, normalize: bool, precision: str, labels: Tensor | None = None, ignore_index: int | None = None
) -> Rows:
    """Row statistics, on the device. float32 rows of a lower precision enter with the norms of their rounded values."""
    x = x.contiguous()
    m, d = x.shape
    compute = compute_dtype(x.dtype)
    dropped = {"tf32": 13, "bf16": 16}.get(precision, 0) if x.dtype == torch.float32 else 0
    operand = torch.empty_like(x, dtype=torch.bfloat16 if dropped == 16 else x.dtype) if dropped else x
    scale, inverse, norms = (torch.empty(m, dtype=compute, device=x.device) for _ in range(3))
    state = torch.empty(m, dtype=torch.int32, device=x.device)
    if m > 0:
        block_m = row_block()
        launch(_prepare, (triton.cdiv(m, block_m),))(
            x, state if labels is None else labels, operand, scale, inverse, norms, state, m,
            0 if ignore_index is None else ignore_index, torch.finfo(compute).max * (1.0 if normalize else 0.125),
            D=d, NORMALIZE=normalize, IGNORE=labels is not None and ignore_index is not None, DROPPED=dropped,
            DTYPE=triton_dtype(x.dtype), BLOCK_M=block_m, num_warps=4,
        )  # fmt: skip
    return Rows(x, operand, scale, inverse, norms, state)


class Sums(NamedTuple):
    """Sums over pairs that the gradient of rows is made of."""

    rows: Tensor  # (parts, rows, D) sum of weight · other row
    weights: Tensor  # (parts, rows) sum of the weights


def empty_sums(rows: Rows, parts: int = 1) -> Sums:
    shape = (parts, rows.count)
    return Sums(rows.scale.new_empty(*shape, rows.width), rows.scale.new_empty(shape))


def zero_sums(rows: Rows) -> Sums:
    sums = empty_sums(rows)
    return Sums(sums.rows.zero_(), sums.weights.zero_())


@triton.jit(do_not_specialize=["M", "parts"])
def _finish(
    x, sums, weights, scale, inverse, state, all_nan, grad, M, parts, sign: tl.float64,
    D: tl.constexpr, NORMALIZE: tl.constexpr, NAN_ROWS: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < M
    kind = tl.load(state + rows, mask=inside, other=0)
    ok = kind == KEPT
    factor = tl.load(scale + rows, mask=ok, other=0.0)
    to_norm = tl.load(inverse + rows, mask=ok, other=0.0)
    weight = tl.zeros((BLOCK_M,), DTYPE)
    for part in range(parts):
        weight += tl.load(weights + part * M.to(tl.int64) + rows, mask=ok, other=0.0)
    bad = kind == NON_FINITE
    if NAN_ROWS:
        bad = bad | ((tl.load(all_nan) != 0) & (kind != IGNORED))
    along = tl.zeros((BLOCK_M,), DTYPE)
    if NORMALIZE:
        for k in range(0, D, BLOCK_K):
            f = _pair.load_rows(x, rows, ok, k, D, BLOCK_K).to(DTYPE) * factor[:, None]
            p = _ambient(sums, rows, ok, weight, f, k, M, parts, sign, D, DTYPE, BLOCK_K)
            along += tl.sum(p * f, 1)
    for k in range(0, D, BLOCK_K):
        f = _pair.load_rows(x, rows, ok, k, D, BLOCK_K).to(DTYPE) * factor[:, None]
        p = _ambient(sums, rows, ok, weight, f, k, M, parts, sign, D, DTYPE, BLOCK_K)
        p = (p - along[:, None] * f) * to_norm[:, None]
        if NAN_ROWS:
            p = tl.where(bad[:, None], float("nan"), p)
        columns = k + tl.arange(0, BLOCK_K)
        _pair.store_as(grad + rows[:, None] * D + columns[None, :], p, inside[:, None] & (columns < D)[None, :])


@triton.jit
def _ambient(sums, rows, ok, weight, f, k, M, parts, sign, D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr):
    """Gradient with respect to f: weight · f + sign · sums, the parts added in their order."""
    total = tl.zeros(f.shape, DTYPE)
    for part in range(parts):
        total += _pair.load_rows(sums + part * M.to(tl.int64) * D, rows, ok, k, D, BLOCK_K)
    return weight[:, None] * f + _pair.scalar(sign, DTYPE) * total


def finish_gradient(
    rows: Rows, sums: Sums, sign: float, normalize: bool, all_nan: Tensor | None = None, nan_rows: bool = True
) -> Tensor:
    """Gradient of the caller's rows: p = weights · f + sign · sums, then the backward of the normalisation.

    Args:
        all_nan: () bool; every row that is not ignored gets NaN.
        nan_rows: whether non-finite rows get NaN; otherwise 0, since no pair has them.
    """
    m, d = rows.x.shape
    grad = torch.empty_like(rows.x)
    if m == 0 or d == 0:
        return grad
    all_nan = torch.zeros((), dtype=torch.bool, device=rows.x.device) if all_nan is None else all_nan
    block_m = row_block()
    launch(_finish, (triton.cdiv(m, block_m),))(
        rows.x, sums.rows, sums.weights, rows.scale, rows.inverse, rows.state, all_nan, grad, m, sums.rows.shape[0],
        sign, D=d, NORMALIZE=normalize, NAN_ROWS=nan_rows, DTYPE=triton_dtype(rows.x.dtype), BLOCK_M=block_m,
        BLOCK_K=power_of_two(d, 16, 64), num_warps=8,
    )  # fmt: skip
    return grad
