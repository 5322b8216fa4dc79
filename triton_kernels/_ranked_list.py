"""Ranked List Loss of a tile of pairs: the formulae of csrc/common/ranked_list.h, by name."""

import triton
import triton.language as tl

from . import _pair

NO_MAXIMUM = tl.constexpr(-1e30)


@triton.jit
def in_positive_set(squared, limit):
    return squared > limit


@triton.jit
def in_negative_set(squared, limit):
    return squared < limit


@triton.jit
def violation(distance, boundary, SIGN: tl.constexpr):
    return SIGN * (distance - boundary)


@triton.jit
def add_where(total, moment, top, members, v, temperature, RUNNING: tl.constexpr):
    """total = sum_j e^(T v - top), moment = sum_j e^(T v - top) v of each row; top is 0, or the running maximum."""
    score = v * temperature
    if RUNNING:
        new = tl.maximum(top, tl.max(tl.where(members, score, NO_MAXIMUM), 1))
        shrink = tl.exp(top - new)
        total = total * shrink
        moment = moment * shrink
        top = new
        score = score - top[:, None]
    e = tl.where(members, tl.exp(score), 0.0)
    return total + tl.sum(e, 1), moment + tl.sum(e * v, 1), top


@triton.jit
def pair_gradient(scale, level, log_denom, v, e, temperature, slope, RUNNING: tl.constexpr):
    """dL/dv of a pair from one end: g c p (1 + slope (v - level)). e is e^(T v) without running maxima."""
    if RUNNING:
        e = tl.exp(v * temperature - log_denom)
    return scale * e * (1.0 + slope * (v - level))


@triton.jit
def merge(total, moment, top, other_total, other_moment, other_top):
    """Two weighted sums as one; one without members leaves the other as it is."""
    new = tl.where(other_total != 0.0, tl.maximum(top, other_top), top)
    keep = tl.exp(top - new)
    add = tl.where(other_total != 0.0, tl.exp(tl.where(other_total != 0.0, other_top, new) - new), 0.0)
    return total * keep + other_total * add, moment * keep + other_moment * add, new


@triton.jit
def set_result(total, moment, top, log_eps):
    """log of the weights' denominator, total e^top + eps, and loss of the set; an empty one costs 0."""
    some = total != 0.0
    level = tl.where(some, tl.maximum(top, log_eps), 0.0)
    share = tl.where(some, tl.exp(tl.where(some, top, 0.0) - level), 0.0)
    denominator = tl.where(some, total * share + tl.exp(log_eps - level), 1.0)
    return tl.where(some, tl.log(denominator) + level, log_eps), tl.where(some, moment * share / denominator, 0.0)


@triton.jit
def tile_members(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    rows, cols, M, N, pos_limit, neg_limit,
    EASY: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared distances of a tile, sums of squared norms, and who is in the two non-trivial sets."""
    row_ok, row_scale, row_norms, row_labels, row_ids = _pair.facts(
        x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS
    )
    col_ok, col_scale, col_norms, col_labels, col_ids = _pair.facts(
        y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS
    )
    pairs = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
    norms = row_norms[:, None] + col_norms[None, :]
    squared = _pair.squared_distances(
        x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, pairs,
        D, PRECISION, DTYPE, BLOCK_K,
    )  # fmt: skip
    neg = pairs & (row_labels[:, None] != col_labels[None, :])
    neg = neg & in_negative_set(squared, _pair.scalar(neg_limit, DTYPE))
    pos = pairs & (row_labels[:, None] == col_labels[None, :])
    pos = pos & in_positive_set(squared, _pair.scalar(float("inf") if EASY else pos_limit, DTYPE))
    if APART:
        pos = pos & (squared > 0.0)
        neg = neg & (squared > 0.0)
    return squared, norms, pos, neg, row_ok, row_scale, col_ok, col_scale


@triton.jit
def set_ends(
    row_end, col_end, distance, members, boundary, temperature, slope, row_factors, rows, row_ok, M,
    col_factors, cols, col_ok, N,
    SIGN: tl.constexpr, RUNNING: tl.constexpr, ROW_END: tl.constexpr, COL_END: tl.constexpr,
):  # fmt: skip
    """dL/d(distance) of the members of one set, from the loss of the row and from the loss of the column.

    The factors are scale, level and log_denom (`csrc/common/ranked_list.h`: RowGradient), each (rows,).
    """
    v = violation(distance, boundary, SIGN)
    e = v
    if not RUNNING:
        e = tl.exp(v * temperature)
    if ROW_END:
        scale = tl.load(row_factors + rows, mask=row_ok, other=0.0)[:, None]
        level = tl.load(row_factors + M + rows, mask=row_ok, other=0.0)[:, None]
        log_denom = tl.load(row_factors + 2 * M + rows, mask=row_ok, other=0.0)[:, None]
        gradient = pair_gradient(scale, level, log_denom, v, e, temperature, slope, RUNNING)
        row_end = tl.where(members, SIGN * gradient, row_end)
    if COL_END:
        scale = tl.load(col_factors + cols, mask=col_ok, other=0.0)[None, :]
        level = tl.load(col_factors + N + cols, mask=col_ok, other=0.0)[None, :]
        log_denom = tl.load(col_factors + 2 * N + cols, mask=col_ok, other=0.0)[None, :]
        gradient = pair_gradient(scale, level, log_denom, v, e, temperature, slope, RUNNING)
        col_end = tl.where(members, SIGN * gradient, col_end)
    return row_end, col_end


@triton.jit
def tile_weights(
    squared, norms, pos, neg, rows, row_ok, M, cols, col_ok, N, row_factors, col_factors,
    pos_boundary, pos_temperature, pos_slope, neg_boundary, neg_temperature, neg_slope,
    RUNNING: tl.constexpr, ROW_END: tl.constexpr, COL_END: tl.constexpr, EPS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Weights (dL/dd)/d of (f_i - g_j), from the loss of the row and from the loss of the column."""
    members = pos | neg
    distance = tl.sqrt(tl.where(members, squared, 1.0))
    row_end = tl.zeros(squared.shape, DTYPE)
    col_end = tl.zeros(squared.shape, DTYPE)
    row_end, col_end = set_ends(
        row_end, col_end, distance, pos, _pair.scalar(pos_boundary, DTYPE), _pair.scalar(pos_temperature, DTYPE),
        _pair.scalar(pos_slope, DTYPE), row_factors, rows, row_ok, M, col_factors, cols, col_ok, N,
        1.0, RUNNING, ROW_END, COL_END,
    )  # fmt: skip
    row_end, col_end = set_ends(
        row_end, col_end, distance, neg, _pair.scalar(neg_boundary, DTYPE), _pair.scalar(neg_temperature, DTYPE),
        _pair.scalar(neg_slope, DTYPE), row_factors + 3 * M, rows, row_ok, M, col_factors + 3 * N, cols, col_ok, N,
        -1.0, RUNNING, ROW_END, COL_END,
    )  # fmt: skip
    scale = tl.where(members, _pair.gradient_scale(squared, norms, EPS), 0.0)
    return row_end * scale, col_end * scale
