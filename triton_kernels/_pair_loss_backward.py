"""Kernels of pair_loss's backward: sums of weighted rows over the active tiles."""

import triton
import triton.language as tl

from . import _pair
from ._pair import facts
from ._pair_loss import end_gradient, gradient_of_value, side_numbers, tile_pairs, value_of


@triton.jit
def _is_active(active, of_row, of_col, M, N, SELF: tl.constexpr, TRANSPOSED: tl.constexpr, TILE: tl.constexpr):
    """Whether a pair of the tile takes part: in the loss of its query and, in self mode, in that of either end."""
    at = of_col * tl.cdiv(M, TILE) + of_row if TRANSPOSED else of_row * tl.cdiv(N, TILE) + of_col
    some = tl.load(active + at) != 0
    if SELF:
        # A bound of its own lets a pair take part at one end only.
        some = some | (tl.load(active + of_col * tl.cdiv(N, TILE) + of_row) != 0)
    return some


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def backward_rows(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    bounds, grad_stats, grad_sums, stats, active, sums, weights, M, N, part_tiles,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, TRANSPOSED: tl.constexpr, PULL: tl.constexpr,
    ROUNDING: tl.constexpr, EPS: tl.constexpr, VALUE: tl.constexpr, TERM: tl.constexpr, SIDES: tl.constexpr,
    BOUNDED: tl.constexpr, RAMP: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of rows, BLOCK_D features, one part of the columns. TRANSPOSED: the rows are the gallery's."""
    i, part = tl.program_id(0), tl.program_id(2)
    first_column = tl.program_id(1) * BLOCK_D
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Once, and not for every tile: the addresses of all of them would be kept otherwise.
    row_facts = facts(x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS)
    row_ok = row_facts[0]
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, DTYPE)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, DTYPE)
    acc = tl.zeros((BLOCK_M, BLOCK_D), DTYPE)
    total = tl.zeros((BLOCK_M,), DTYPE)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        if _is_active(active, i * BLOCK_M // TILE, tile * BLOCK_N // TILE, M, N, SELF, TRANSPOSED, TILE):
            cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            col_facts = facts(y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS)
            col_ok, col_scale = col_facts[0], col_facts[1]
            measured, norms, same, members = tile_pairs(
                x, x_operand, y, y_operand, rows, row_facts, cols, col_facts,
                VALUE, SIDES, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
            )  # fmt: skip
            weight = _weights(
                measured, norms, same, members, bounds, grad_stats, grad_sums, stats, rows, row_ok, M, cols, col_ok, N,
                pos, neg, ROW_END, COL_END, EPS, VALUE, TERM, SIDES, BOUNDED, RAMP, DTYPE,
            )  # fmt: skip
            high, low, amounts_to = _pair.rounded_weights(weight, col_scale, ROUNDING)
            if PULL:
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
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    bounds, grad_stats, grad_sums, stats, active, row_sums, row_weights, col_sums, col_weights,
    M, N, row_tiles, col_tiles,
    COLUMNS: tl.constexpr, PULL: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr,
    VALUE: tl.constexpr, TERM: tl.constexpr, SIDES: tl.constexpr, BOUNDED: tl.constexpr, RAMP: tl.constexpr,
    SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of pairs, added to its rows and, with COLUMNS, its columns. In self mode (i, j) is (j, i) too."""
    if SELF:
        i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    else:
        i, j = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if _is_active(active, i * BLOCK_M // TILE, j * BLOCK_N // TILE, M, N, SELF, False, TILE):
        rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, DTYPE)
        neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, DTYPE)
        row_facts = facts(x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS)
        col_facts = facts(y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS)
        row_ok, row_scale = row_facts[0], row_facts[1]
        col_ok, col_scale = col_facts[0], col_facts[1]
        measured, norms, same, members = tile_pairs(
            x, x_operand, y, y_operand, rows, row_facts, cols, col_facts,
            VALUE, SIDES, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        weight = _weights(
            measured, norms, same, members, bounds, grad_stats, grad_sums, stats, rows, row_ok, M, cols, col_ok, N,
            pos, neg, True, SELF, EPS, VALUE, TERM, SIDES, BOUNDED, RAMP, DTYPE,
        )  # fmt: skip
        _pair.add_to_end(
            row_sums, row_weights, weight, rows, row_ok, y_operand, cols, col_ok, col_scale, True,
            PULL, ROUNDING, D, PRECISION, DTYPE, BLOCK_D,
        )  # fmt: skip
        if COLUMNS:
            _pair.add_to_end(
                col_sums, col_weights, tl.trans(weight), cols, col_ok, x_operand, rows, row_ok, row_scale,
                (i != j) if SELF else True, PULL, ROUNDING, D, PRECISION, DTYPE, BLOCK_D,
            )  # fmt: skip


@triton.jit
def _weights(
    measured, norms, same, members, bounds, grad_stats, grad_sums, stats, rows, row_ok, M, cols, col_ok, N, pos, neg,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, EPS: tl.constexpr, VALUE: tl.constexpr, TERM: tl.constexpr,
    SIDES: tl.constexpr, BOUNDED: tl.constexpr, RAMP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Weights of g_j, or of f_i - g_j, from the statistics of the row and from those of the column."""
    v = value_of(measured, VALUE)
    grad = tl.zeros(v.shape, DTYPE)
    if ROW_END:
        grad += end_gradient(
            v, same, members, bounds, grad_stats, grad_sums, stats, rows, row_ok, M, pos, neg,
            1, SIDES, TERM, BOUNDED, RAMP,
        )  # fmt: skip
    if COL_END:
        grad += end_gradient(
            v, same, members, bounds, grad_stats, grad_sums, stats, cols, col_ok, N, pos, neg,
            0, SIDES, TERM, BOUNDED, RAMP,
        )  # fmt: skip
    return gradient_of_value(grad, measured, norms, VALUE, EPS)
