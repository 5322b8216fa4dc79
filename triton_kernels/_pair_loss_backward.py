"""Kernels of pair_loss's backward: sums of weighted rows over the active tiles."""

import triton
import triton.language as tl

from . import _pair
from ._pair_loss import (
    FACTORS,
    TILE,
    facts,
    gradient_of_value,
    is_left,
    leave,
    measure_tile,
    side_gradient,
    side_numbers,
)


@triton.jit(do_not_specialize=["M"])
def row_factors(
    grad_stats, grad_log_sums, grad_sums, stats, log_sums, factors, M,
    pos_scale: tl.float64, pos_temperature: tl.float64, pos_shift: tl.float64,
    neg_scale: tl.float64, neg_temperature: tl.float64, neg_shift: tl.float64,
    POS: tl.constexpr, NEG: tl.constexpr, RUNNING: tl.constexpr, RAMP: tl.constexpr, WEIGHT_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """factors (2, FACTORS, M) of `_pair_loss.End`: all that is computed once a row, in double."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    _side_factors(
        grad_stats + rows, grad_log_sums + rows, grad_sums + rows, stats + rows, log_sums + rows, factors + rows,
        rows < M, M, pos_scale, pos_temperature, pos_shift, POS, RUNNING, RAMP, WEIGHT_GRAD,
    )  # fmt: skip
    out = rows + M
    _side_factors(
        grad_stats + out, grad_log_sums + out, grad_sums + out, stats + out, log_sums + out,
        factors + FACTORS * M.to(tl.int64) + rows, rows < M, M, neg_scale, neg_temperature, neg_shift,
        NEG, RUNNING, RAMP, WEIGHT_GRAD,
    )  # fmt: skip


@triton.jit
def _side_factors(
    grad_stats, grad_log_sums, grad_sums, stats, log_sums, factors, inside, M, scale, temperature, shift,
    TERM: tl.constexpr, RUNNING: tl.constexpr, RAMP: tl.constexpr, WEIGHT_GRAD: tl.constexpr,
):  # fmt: skip
    if TERM != "none":
        constant = tl.load(grad_stats, mask=inside, other=0.0).to(tl.float64)
        added = tl.load(grad_sums, mask=inside, other=0.0).to(tl.float64)
        linear, level = tl.zeros(constant.shape, tl.float64), tl.zeros(constant.shape, tl.float64)
        if TERM == "exp":
            level = tl.load(stats, mask=inside, other=0.0).to(tl.float64)
        elif TERM == "moment":
            level = tl.load(log_sums, mask=inside, other=0.0).to(tl.float64)
            grad_log_sum = tl.load(grad_log_sums, mask=inside, other=0.0).to(tl.float64)
            if WEIGHT_GRAD:
                linear = constant * temperature
                constant -= linear * tl.load(stats, mask=inside, other=0.0).to(tl.float64)
            constant += grad_log_sum * temperature
        if TERM == "exp" or TERM == "moment":
            # A row that kept no pair keeps none here, whatever rounding says of a mined pair.
            some = level > float("-inf")
            share = tl.where(some, 1.0, 0.0)
            if not RUNNING:
                share = tl.where(some, tl.exp(tl.where(some, shift - level, 0.0)), 0.0)
            constant *= share
            linear *= share
            added = tl.where(some, added, 0.0)
            level = tl.where(some, level, 0.0)
        if TERM != "exp" or not RAMP:
            constant *= scale
            linear *= scale
        step = M.to(tl.int64)
        tl.store(factors, constant, mask=inside)
        tl.store(factors + step, linear, mask=inside)
        tl.store(factors + 2 * step, level, mask=inside)
        tl.store(factors + 3 * step, added, mask=inside)


@triton.jit
def _is_active(active, of_row, of_col, M, N, TRANSPOSED: tl.constexpr, FORM: tl.constexpr):
    """Whether a pair of the tile takes part: in the loss of its query and, in self mode, in that of either end."""
    at = of_col * tl.cdiv(M, TILE) + of_row if TRANSPOSED else of_row * tl.cdiv(N, TILE) + of_col
    some = tl.load(active + at) != 0
    if FORM.own:
        # A bound of its own lets a pair take part at one end only.
        some = some | (tl.load(active + of_col * tl.cdiv(N, TILE) + of_row) != 0)
    return some


@triton.jit
def _weights(
    pairs, bounds, factors, rows, row_ok, M, cols, col_ok, N, pos, neg,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, EPS: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """Weights of g_j, or of f_i - g_j, from the losses of the rows and from those of the columns."""
    grad = tl.zeros(pairs.measured.shape, FORM.dtype)
    if FORM.pos != "none":
        grad += side_gradient(
            pairs.measured, pairs.positive, bounds, factors, rows, row_ok, M, cols, col_ok, N, pos,
            ROW_END, COL_END, FORM.pos, FORM,
        )  # fmt: skip
    if FORM.neg != "none":
        # (2, queries) bounds and (2, FACTORS, queries) factors: the queries are the end that is asked for.
        queries = M if ROW_END else N
        grad += side_gradient(
            pairs.measured, pairs.negative, bounds + queries, factors + FACTORS * queries.to(tl.int64), rows, row_ok,
            M, cols, col_ok, N, neg, ROW_END, COL_END, FORM.neg, FORM,
        )  # fmt: skip
    return gradient_of_value(grad, pairs.measured, pairs.norms, FORM, EPS)


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def backward_rows(
    f, g,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    pos_temperature: tl.float64, pos_shift: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    neg_temperature: tl.float64, neg_shift: tl.float64,
    bounds, factors, active, sums, weights, M, N, part_tiles,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, TRANSPOSED: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of rows, BLOCK_D features, one part of the columns. TRANSPOSED: the rows are the gallery's."""
    i, part = tl.program_id(0), tl.program_id(2)
    first_column = tl.program_id(1) * BLOCK_D
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Once, and not for every tile: the addresses of all of them would be kept otherwise.
    row_facts = facts(f, rows, M, FORM)
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature, pos_shift, FORM)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature, neg_shift, FORM)
    acc = tl.zeros((BLOCK_M, BLOCK_D), FORM.dtype)
    total = tl.zeros((BLOCK_M,), FORM.dtype)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        if _is_active(active, i * BLOCK_M // TILE, tile * BLOCK_N // TILE, M, N, TRANSPOSED, FORM):
            cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
            col_facts = facts(g, cols, N, FORM)
            col_ok, col_scale = col_facts[0], col_facts[1]
            pairs = measure_tile(f, g, rows, row_facts, cols, col_facts, True, FORM, BLOCK_K)
            weight = _weights(
                pairs, bounds, factors, rows, row_facts[0], M, cols, col_ok, N, pos, neg, ROW_END, COL_END, EPS, FORM
            )
            high, low, amounts_to = _pair.rounded_weights(weight, col_scale, ROUNDING)
            if FORM.measure != "similarity":
                total += tl.sum(amounts_to, 1)
            others = _pair.load_rows(g.operand, cols, col_ok, first_column, FORM.width, BLOCK_D)
            acc = _pair.add_weighted_rows(acc, high, low, others, ROUNDING, FORM.precision)
    features = first_column + tl.arange(0, BLOCK_D)
    at = (part * M.to(tl.int64) + rows)[:, None] * FORM.width + features[None, :]
    tl.store(sums + at, acc, mask=(rows < M)[:, None] & (features < FORM.width)[None, :])
    if first_column == 0:
        tl.store(weights + part * M.to(tl.int64) + rows, total, mask=rows < M)


@triton.jit(do_not_specialize=["M", "N", "row_tiles", "col_tiles"])
def backward_tiles(
    f, g,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    pos_temperature: tl.float64, pos_shift: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    neg_temperature: tl.float64, neg_shift: tl.float64,
    bounds, factors, active, near, row_sums, row_weights, col_sums, col_weights, M, N, row_tiles, col_tiles,
    COLUMNS: tl.constexpr, QUERY: tl.constexpr, ROUNDING: tl.constexpr, EPS: tl.constexpr, NEARBY: tl.constexpr,
    NEAR_SIDE: tl.constexpr, FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of pairs, added to its rows and, with COLUMNS, its columns. In self mode (i, j) is (j, i) too.

    QUERY: no loss reaches the other end of its pairs.
    """
    if FORM.own:
        i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    else:
        i, j = tl.program_id(0) // col_tiles, tl.program_id(0) % col_tiles
    if is_left(near, i, j, N, NEARBY, NEAR_SIDE, FORM, BLOCK_M):
        return
    if _is_active(active, i * BLOCK_M // TILE, j * BLOCK_N // TILE, M, N, False, FORM) == 0:
        return
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature, pos_shift, FORM)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature, neg_shift, FORM)
    row_facts, col_facts = facts(f, rows, M, FORM), facts(g, cols, N, FORM)
    row_ok, row_scale = row_facts[0], row_facts[1]
    col_ok, col_scale = col_facts[0], col_facts[1]
    pairs = measure_tile(f, g, rows, row_facts, cols, col_facts, NEARBY, FORM, BLOCK_K)
    if leave(pairs, near, i, j, N, NEARBY, NEAR_SIDE, FORM):
        return
    weight = _weights(
        pairs, bounds, factors, rows, row_ok, M, cols, col_ok, N, pos, neg, True, FORM.own and not QUERY, EPS, FORM
    )
    _pair.add_to_end(
        row_sums, row_weights, weight, rows, row_ok, g.operand, cols, col_ok, col_scale, True,
        FORM.measure != "similarity", ROUNDING, FORM.width, FORM.precision, FORM.dtype, BLOCK_D,
    )  # fmt: skip
    if COLUMNS:
        if QUERY:
            weight = _weights(
                pairs, bounds, factors, rows, row_ok, M, cols, col_ok, N, pos, neg, False, True, EPS, FORM
            )
        _pair.add_to_end(
            col_sums, col_weights, tl.trans(weight), cols, col_ok, f.operand, rows, row_ok, row_scale,
            (i != j) if FORM.own else True, FORM.measure != "similarity", ROUNDING, FORM.width, FORM.precision,
            FORM.dtype, BLOCK_D,
        )  # fmt: skip
