"""pairwise: similarities or distances of rows. Of a matrix and itself, half of the tiles are computed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _pair, _rows
from ._launch import launch


@triton.jit(do_not_specialize=["M", "N", "row_tiles", "col_tiles"])
def _forward(
    x, x_operand, x_scale, x_norms, y, y_operand, y_scale, y_norms, out, M, N, row_tiles, col_tiles,
    METRIC: tl.constexpr, SELF: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if SELF:
        i, j = _pair.upper_tile(program, row_tiles)
    else:
        i, j = program // col_tiles, program % col_tiles
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok, col_ok = rows < M, cols < N
    result = _values(
        x, x_operand, x_scale, x_norms, y, y_operand, y_scale, y_norms, rows, cols, row_ok, col_ok,
        METRIC, SELF, D, PRECISION, DTYPE, BLOCK_K,
    )  # fmt: skip
    if METRIC == "euclidean":
        result = tl.sqrt(result)
    mask = row_ok[:, None] & col_ok[None, :]
    _pair.store_as(out + rows[:, None] * N + cols[None, :], result, mask)
    if SELF:
        if i != j:
            _pair.store_as(out + cols[:, None] * N + rows[None, :], tl.trans(result), tl.trans(mask))


@triton.jit
def _values(
    x, x_operand, x_scale, x_norms, y, y_operand, y_scale, y_norms, rows, cols, row_ok, col_ok,
    METRIC: tl.constexpr, SELF: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Dot products, or squared distances, of a tile."""
    row_scale = tl.load(x_scale + rows, mask=row_ok, other=0.0)
    col_scale = tl.load(y_scale + cols, mask=col_ok, other=0.0)
    if METRIC == "dot":
        s = _pair.tile_product(x_operand, y_operand, rows, cols, row_ok, col_ok, D, PRECISION, DTYPE, BLOCK_K)
        result = s * (row_scale[:, None] * col_scale[None, :])
    else:
        norms = _norms(x_norms, y_norms, rows, cols, row_ok, col_ok)
        wanted = row_ok[:, None] & col_ok[None, :]
        if SELF:
            wanted = wanted & (rows[:, None] != cols[None, :])
        result = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, wanted,
            D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        if SELF:
            # A row that is not finite is not at distance 0 even of itself.
            itself = (rows[:, None] == cols[None, :]) & (norms < float("inf"))
            result = tl.where(itself, 0.0, result)
    return result


@triton.jit
def _norms(x_norms, y_norms, rows, cols, row_ok, col_ok):
    of_row = tl.load(x_norms + rows, mask=row_ok, other=0.0)
    of_col = tl.load(y_norms + cols, mask=col_ok, other=0.0)
    return of_row[:, None] + of_col[None, :]


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def _backward(
    x, x_operand, x_scale, x_norms, y, y_operand, y_scale, y_norms, grad, sums, weights, M, N, part_tiles,
    METRIC: tl.constexpr, SELF: tl.constexpr, TRANSPOSED: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the columns, of BLOCK_D features, for one tile of rows.

    Weight of (f_i - g_j): 2 grad for squared distances, grad / d for distances. For dot products grad weighs g_j alone.
    """
    part = tl.program_id(2)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < M
    first_column = tl.program_id(1) * BLOCK_D
    acc = tl.zeros((BLOCK_M, BLOCK_D), DTYPE)
    total = tl.zeros((BLOCK_M,), DTYPE)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        col_ok = cols < N
        mask = row_ok[:, None] & col_ok[None, :]
        if TRANSPOSED:
            weight = tl.load(grad + cols[None, :] * M + rows[:, None], mask=mask, other=0.0).to(DTYPE)
        else:
            weight = tl.load(grad + rows[:, None] * N + cols[None, :], mask=mask, other=0.0).to(DTYPE)
        if SELF:
            weight += tl.load(grad + cols[None, :] * N + rows[:, None], mask=mask, other=0.0).to(DTYPE)
        if METRIC == "squared":
            weight = weight + weight
        if METRIC == "euclidean":
            squared = _values(
                x, x_operand, x_scale, x_norms, y, y_operand, y_scale, y_norms, rows, cols, row_ok, col_ok,
                METRIC, SELF, D, PRECISION, DTYPE, BLOCK_K,
            )  # fmt: skip
            norms = _norms(x_norms, y_norms, rows, cols, row_ok, col_ok)
            weight = weight * _pair.gradient_scale(squared, norms, EPS)
        scale = tl.load(y_scale + cols, mask=col_ok, other=1.0)
        high, low, amounts_to = _pair.rounded_weights(weight, scale, ROUNDING)
        total += tl.sum(amounts_to, 1)
        others = _pair.load_rows(y_operand, cols, col_ok, first_column, D, BLOCK_D)
        acc = _pair.add_weighted_rows(acc, high, low, others, ROUNDING, PRECISION)
    features = first_column + tl.arange(0, BLOCK_D)
    at = (part * M.to(tl.int64) + rows)[:, None] * D + features[None, :]
    tl.store(sums + at, acc, mask=row_ok[:, None] & (features < D)[None, :])
    if METRIC == "dot":
        total = tl.zeros((BLOCK_M,), DTYPE)
    if first_column == 0:
        tl.store(weights + part * M.to(tl.int64) + rows, total, mask=row_ok)


def forward(x: Tensor, y: Tensor | None, metric: str, normalize: bool, precision: str) -> Tensor:
    q = _rows.prepare(x, normalize, precision)
    g = q if y is None else _rows.prepare(y, normalize, precision)
    out = torch.empty(q.count, g.count, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    config = _configs.choose("pairwise_fwd", q.operand.dtype, q.width, x.device, square=y is None)
    row_tiles, col_tiles = triton.cdiv(q.count, config.block_m), triton.cdiv(g.count, config.block_n)
    tiles = row_tiles * (row_tiles + 1) // 2 if y is None else row_tiles * col_tiles
    launch(_forward, (tiles,))(
        *_operands(q), *_operands(g), out, q.count, g.count, row_tiles, col_tiles,
        METRIC=metric, SELF=y is None, D=q.width, PRECISION=_configs.dot_precision(precision),
        DTYPE=_rows.triton_dtype(x.dtype), **config.tile(),
    )  # fmt: skip
    return out


def backward(
    grad_out: Tensor, x: Tensor, y: Tensor | None, metric: str, normalize: bool, precision: str
) -> tuple[Tensor, Tensor]:
    grad = grad_out.contiguous()
    q = _rows.prepare(x, normalize, precision)
    if y is None:
        return _side(q, q, grad, metric, normalize, precision, own=True), x.new_empty(0, x.shape[1])
    g = _rows.prepare(y, normalize, precision)
    grad_x = _side(q, g, grad, metric, normalize, precision)
    return grad_x, _side(g, q, grad, metric, normalize, precision, transposed=True)


def _side(
    q: _rows.Rows,
    g: _rows.Rows,
    grad: Tensor,
    metric: str,
    normalize: bool,
    precision: str,
    own: bool = False,
    transposed: bool = False,
) -> Tensor:
    """Gradient of the rows q, each of which meets the rows g."""
    sums = weighted_sums(q, g, grad, metric, precision, own, transposed)
    if sums is None:
        return torch.zeros_like(q.x)
    return _rows.finish_gradient(q, sums, 1.0 if metric == "dot" else -1.0, normalize)


def weighted_sums(
    q: _rows.Rows,
    g: _rows.Rows,
    grad: Tensor,
    metric: str,
    precision: str,
    own: bool = False,
    transposed: bool = False,
) -> _rows.Sums | None:
    """What the rows g add to the gradient of the rows q; None where there is nothing.

    Args:
        grad: (q, g) gradient of the metric, or (g, q) with `transposed`. With `own`, that of both ends counts.
    """
    if q.count == 0 or g.count == 0 or q.width == 0:
        return None
    config = _configs.choose("pairwise_bwd", q.operand.dtype, q.width, q.x.device)
    grid = (triton.cdiv(q.count, config.block_m), triton.cdiv(q.width, config.block_d))
    tiles = triton.cdiv(g.count, config.block_n)
    parts = _configs.parts(grid[0] * grid[1], tiles)
    sums = _rows.empty_sums(q, parts)
    launch(_backward, (*grid, parts))(
        *_operands(q), *_operands(g), grad, *sums, q.count, g.count, triton.cdiv(tiles, parts),
        METRIC=metric, SELF=own, TRANSPOSED=transposed,
        ROUNDING=_configs.rounding(q.operand.dtype, q.x.dtype, precision), EPS=torch.finfo(q.scale.dtype).eps,
        D=q.width, PRECISION=_configs.dot_precision(precision), DTYPE=_rows.triton_dtype(q.x.dtype),
        BLOCK_D=config.block_d, **config.tile(),
    )  # fmt: skip
    return sums


def _operands(rows: _rows.Rows) -> tuple[Tensor, ...]:
    return rows.x, rows.operand, rows.scale, rows.norms


OPERATORS = {"pairwise_fwd": forward, "pairwise_bwd": backward}
