"""Kernels of ranked_list's backward: sums of weighted rows over the active tiles."""

import triton
import triton.language as tl

from . import _pair
from ._ranked_list import tile_members, tile_weights


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def backward_rows(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_boundary: tl.float64, pos_temperature: tl.float64, pos_slope: tl.float64,
    neg_boundary: tl.float64, neg_temperature: tl.float64, neg_slope: tl.float64,
    pos_limit: tl.float64, neg_limit: tl.float64, factors, active, sums, weights, M, N, part_tiles,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, TRANSPOSED: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr,
    RUNNING: tl.constexpr, EASY: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of rows, BLOCK_D features, one part of the columns. TRANSPOSED: the rows are the gallery's."""
    i, part = tl.program_id(0), tl.program_id(2)
    first_column = tl.program_id(1) * BLOCK_D
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    acc = tl.zeros((BLOCK_M, BLOCK_D), DTYPE)
    total = tl.zeros((BLOCK_M,), DTYPE)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        of_row, of_col = i * BLOCK_M // TILE, tile * BLOCK_N // TILE
        at = of_col * tl.cdiv(M, TILE) + of_row if TRANSPOSED else of_row * tl.cdiv(N, TILE) + of_col
        if tl.load(active + at) != 0:
            cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            squared, norms, pos, neg, row_ok, row_scale, col_ok, col_scale = tile_members(
                x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state,
                y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state, rows, cols, M, N, pos_limit, neg_limit,
                EASY, APART, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
            )  # fmt: skip
            row_end, col_end = tile_weights(
                squared, norms, pos, neg, rows, row_ok, M, cols, col_ok, N, factors, factors,
                pos_boundary, pos_temperature, pos_slope, neg_boundary, neg_temperature, neg_slope,
                RUNNING, ROW_END, COL_END, EPS, DTYPE,
            )  # fmt: skip
            high, low, amounts_to = _pair.rounded_weights(row_end + col_end, col_scale, ROUNDING)
            total += tl.sum(amounts_to, 1)
            others = _pair.load_rows(y_operand, cols, col_ok, first_column, D, BLOCK_D)
            acc = _pair.add_weighted_rows(acc, high, low, others, ROUNDING, PRECISION)
    features = first_column + tl.arange(0, BLOCK_D)
    at = (part * M.to(tl.int64) + rows)[:, None] * D + features[None, :]
    tl.store(sums + at, acc, mask=(rows < M)[:, None] & (features < D)[None, :])
    if first_column == 0:
        tl.store(weights + part * M.to(tl.int64) + rows, total, mask=rows < M)


@triton.jit(do_not_specialize=["M", "N", "row_tiles", "col_tiles"])
def backward_tiles(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_boundary: tl.float64, pos_temperature: tl.float64, pos_slope: tl.float64,
    neg_boundary: tl.float64, neg_temperature: tl.float64, neg_slope: tl.float64,
    pos_limit: tl.float64, neg_limit: tl.float64, factors, active, row_sums, row_weights, col_sums, col_weights,
    M, N, row_tiles, col_tiles,
    BOTH_ENDS: tl.constexpr, COLUMNS: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr,
    RUNNING: tl.constexpr, EASY: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of pairs, added to its rows and, with COLUMNS, its columns. In self mode (i, j) is (j, i) too."""
    if SELF:
        i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    else:
        i, j = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if tl.load(active + (i * BLOCK_M // TILE) * tl.cdiv(N, TILE) + j * BLOCK_N // TILE) != 0:
        rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        squared, norms, pos, neg, row_ok, row_scale, col_ok, col_scale = tile_members(
            x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state,
            y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state, rows, cols, M, N, pos_limit, neg_limit,
            EASY, APART, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        row_end, col_end = tile_weights(
            squared, norms, pos, neg, rows, row_ok, M, cols, col_ok, N, factors, factors,
            pos_boundary, pos_temperature, pos_slope, neg_boundary, neg_temperature, neg_slope,
            RUNNING, True, SELF, EPS, DTYPE,
        )  # fmt: skip
        # With both ends, one weight serves both; else each end keeps the weight of its own loss.
        to_row, to_col = row_end, col_end
        if BOTH_ENDS:
            to_row = row_end + col_end
            to_col = to_row
        _pair.add_to_end(
            row_sums, row_weights, to_row, rows, row_ok, y_operand, cols, col_ok, col_scale, True,
            True, ROUNDING, D, PRECISION, DTYPE, BLOCK_D,
        )  # fmt: skip
        if COLUMNS:
            _pair.add_to_end(
                col_sums, col_weights, tl.trans(to_col), cols, col_ok, x_operand, rows, row_ok, row_scale,
                (i != j) if SELF else True, True, ROUNDING, D, PRECISION, DTYPE, BLOCK_D,
            )  # fmt: skip
