"""Pair losses of a tile of pairs: the formulae of csrc/common/pair_loss.h, by name.

The sides of a pair loss, its positives and its negatives, are summed up one after the other, each with a term and
numbers of its own. AXIS is 1 for the losses of the rows, whose sums go over the columns, and 0 for those of the
columns.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from dmlkernels import _contract

from . import _pair, _pair_terms

TILE = tl.constexpr(_contract.TILE)
NO_SCORE = tl.constexpr(-1e30)


class Form(NamedTuple):
    """What a kernel is compiled for. Triton 3.6 hands on a name only as a constexpr."""

    measure: tl.constexpr  # similarity | distance | squared
    pos: tl.constexpr  # terms
    neg: tl.constexpr
    bounded: bool
    ramp: bool  # a score of "exp" has a ramp
    weight_grad: bool
    apart: bool
    running: bool  # maxima are running
    own: bool  # self mode
    has_ids: bool
    width: int
    precision: tl.constexpr
    dtype: tl.dtype
    of_distances: bool  # a pair may be too near for the product form


class Side(NamedTuple):
    """The numbers of one side."""

    scale: tl.tensor
    base: tl.tensor
    ramp: tl.tensor
    origin: tl.tensor
    temperature: tl.tensor
    shift: tl.tensor  # what is subtracted from every score where maxima are not running
    sign: tl.tensor  # of `_pair_terms.beyond`
    limit: tl.tensor


class Tile(NamedTuple):
    """(rows, columns) of a tile."""

    measured: tl.tensor  # similarities or squared distances
    norms: tl.tensor  # sums of squared norms
    positive: tl.tensor
    negative: tl.tensor
    near: tl.tensor  # too near for the product form


@triton.jit
def side_numbers(scale, base, ramp, origin, temperature, shift, FORM: tl.constexpr):
    sign, limit = _pair_terms.moment_limit(scale, base, FORM.measure == "distance")
    dtype: tl.constexpr = FORM.dtype
    return Side(
        _pair.scalar(scale, dtype), _pair.scalar(base, dtype), _pair.scalar(ramp, dtype), _pair.scalar(origin, dtype),
        _pair.scalar(temperature, dtype), _pair.scalar(shift, dtype), sign.to(dtype), limit.to(dtype),
    )  # fmt: skip


@triton.jit
def measure_tile(
    f, g, rows, row_facts, cols, col_facts, NEARBY: tl.constexpr, FORM: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """The pairs of the listed rows of f and columns of g. NEARBY: the near ones are measured in difference form."""
    row_ok, row_scale, row_norms, row_labels, row_ids = row_facts
    col_ok, col_scale, col_norms, col_labels, col_ids = col_facts
    pairs = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, FORM.own, FORM.has_ids)
    norms = row_norms[:, None] + col_norms[None, :]
    near = pairs
    if FORM.of_distances:
        squared, near = _pair.product_distances(
            f.operand, g.operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, pairs,
            FORM.width, FORM.precision, FORM.dtype, BLOCK_K,
        )  # fmt: skip
        if NEARBY:
            squared = _pair.nearby_distances(
                squared, near, f.x, g.x, rows, cols, row_scale, col_scale, FORM.width, FORM.dtype
            )
        measured = squared
        if FORM.apart:
            pairs = pairs & (squared > 0.0)
    if FORM.measure == "similarity":
        measured = _pair.tile_product(
            f.operand, g.operand, rows, cols, row_ok, col_ok, FORM.width, FORM.precision, FORM.dtype, BLOCK_K
        )
        measured = measured * (row_scale[:, None] * col_scale[None, :])
    same = row_labels[:, None] == col_labels[None, :]
    return Tile(measured, norms, pairs & same, pairs & (same == 0), near)


# Two launches of the kernels that own a tile each: the first leaves tiles with near pairs to the second, so that what
# few tiles need takes no registers from the rest. near (rows / NEAR_SIDE, columns / NEAR_SIDE) tells the second, whose
# tiles are smaller.


@triton.jit
def is_left(near, i, j, N, NEARBY: tl.constexpr, NEAR_SIDE: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr):
    """Whether tile (i, j) is not for this launch, as far as the first one has said."""
    if NEARBY and FORM.of_distances:
        return tl.load(near + i * BLOCK // NEAR_SIDE * tl.cdiv(N, NEAR_SIDE) + j * BLOCK // NEAR_SIDE) == 0
    else:
        return False


@triton.jit
def leave(pairs, near, i, j, N, NEARBY: tl.constexpr, NEAR_SIDE: tl.constexpr, FORM: tl.constexpr):
    """Whether the first launch leaves tile (i, j) to the second."""
    if FORM.of_distances and not NEARBY:
        left = _pair.any_of(pairs.near)
        tl.store(near + i * tl.cdiv(N, NEAR_SIDE) + j, 1, mask=left)
        return left
    else:
        return False


@triton.jit
def facts(x, rows, count, FORM: tl.constexpr):
    return _pair.facts(x.scale, x.norms, x.labels, x.ids, x.state, rows, rows < count, FORM.has_ids)


@triton.jit
def value_of(measured, FORM: tl.constexpr):
    if FORM.measure == "distance":
        return tl.sqrt(measured)
    else:
        return measured


@triton.jit
def gradient_of_value(grad, measured, norms, FORM: tl.constexpr, EPS: tl.constexpr):
    """What multiplies the other row, or f_i - g_j, from dL/d(value)."""
    if FORM.measure == "similarity":
        return grad
    elif FORM.measure == "distance":
        return grad * _pair.gradient_scale(measured, norms, EPS)
    else:
        return 2.0 * grad


@triton.jit
def bounds_of(bounds, index, ok, AXIS: tl.constexpr, FORM: tl.constexpr):
    """The bounds of the rows or columns of a tile, or something that is not used."""
    if FORM.bounded:
        return tl.expand_dims(tl.load(bounds + index, mask=ok, other=0.0), AXIS)
    else:
        return 0.0


@triton.jit
def score_slope(v, side, FORM: tl.constexpr):
    """Term "exp": dscore/dv, the score is this times v - base. The ramp is a constant of the gradient."""
    if FORM.ramp:
        return side.scale * tl.where(side.ramp == 0.0, 1.0, tl.maximum(side.ramp * (v - side.origin), 0.0))
    else:
        return side.scale


@triton.jit
def argument(v, bound, side, FORM: tl.constexpr):
    """x of each pair."""
    if FORM.bounded:
        return side.scale * (v - bound)
    else:
        return excess(v, side)


@triton.jit
def excess(v, side):
    """x without bounds, as a moment has it."""
    return side.scale * (v - side.base)


@triton.jit
def score(v, side, TERM: tl.constexpr, FORM: tl.constexpr):
    """Whose exponential is summed up: of "exp" and "moment"."""
    if TERM == "exp":
        return score_slope(v, side, FORM) * (v - side.base)
    else:
        return side.temperature * excess(v, side)


@triton.jit
def taking_part(measured, members, bound, side, TERM: tl.constexpr, FORM: tl.constexpr):
    if TERM == "none":
        return members & False
    elif TERM == "moment":
        return members & _pair_terms.beyond(measured, side.sign, side.limit)
    elif TERM == "exp":
        if FORM.bounded:
            return members & (argument(value_of(measured, FORM), bound, side, FORM) > 0.0)
        else:
            return members
    else:
        active, term, slope = _pair_terms.additive(argument(value_of(measured, FORM), bound, side, FORM), TERM)
        return members & active


class Sums(NamedTuple):
    """Of each row, or column, the sums of one side."""

    total: tl.tensor  # of the terms; of "exp" and "moment" of e^(score - top)
    top: tl.tensor
    moment: tl.tensor  # of "moment": of e^(score - top) x
    of_values: tl.tensor
    slopes: tl.tensor  # of "softplus": of dterm/dx


@triton.jit
def count(pairs, in_pos, in_neg, AXIS: tl.constexpr):
    """Of each row or column one number with a byte each for the positives, the negatives, and those that take part."""
    tl.static_assert(pairs.measured.shape[AXIS] <= 128)
    members = tl.where(pairs.positive, 1, 0) + tl.where(pairs.negative, 1 << 8, 0)
    return tl.sum(members + tl.where(in_pos, 1 << 16, 0) + tl.where(in_neg, 1 << 24, 0), AXIS)


@triton.jit
def of_count(counts, BYTE: tl.constexpr):
    return (counts >> (8 * BYTE)) & 255


@triton.jit
def in_tile(of_pos, of_neg):
    """How many pairs of the whole tile are in one mask and, 16 bits further, in another one."""
    tl.static_assert(of_pos.numel <= 1 << 14)
    return tl.sum(tl.where(of_pos, 1, 0) + tl.where(of_neg, 1 << 16, 0))


@triton.jit
def of_tile(counts, SIDE: tl.constexpr):
    return (counts >> (16 * SIDE)) & 0xFFFF


@triton.jit
def no_sums(side, ROWS: tl.constexpr, FORM: tl.constexpr):
    zero = tl.zeros((ROWS,), FORM.dtype)
    top = tl.full((ROWS,), NO_SCORE, FORM.dtype) if FORM.running else zero + side.shift
    return Sums(zero, top, zero, zero, zero)


@triton.jit
def side_terms(v, taking, bound, top, side, TERM: tl.constexpr, FORM: tl.constexpr):
    """What the pairs of a tile add to their `Sums` under the exponent `top`: total, moment, of_values, slopes."""
    values = tl.where(taking, v, 0.0)
    moments, slopes = values, values
    if TERM == "exp" or TERM == "moment":
        terms = tl.where(taking, tl.exp(score(v, side, TERM, FORM) - top), 0.0)
        if TERM == "moment":
            moments = terms * excess(v, side)
    else:
        active, term, slope = _pair_terms.additive(argument(v, bound, side, FORM), TERM)
        terms = tl.where(taking, term, 0.0)
        if TERM == "softplus":
            slopes = tl.where(taking, slope, 0.0)
    return terms, moments, values, slopes


@triton.jit
def add_to_rows(sums, v, taking, bound, side, TERM: tl.constexpr, FORM: tl.constexpr):
    """The sums of the rows with those of a tile's pairs; a running maximum first rises to their scores."""
    total, top, moment = sums.total, sums.top, sums.moment
    if FORM.running and (TERM == "exp" or TERM == "moment"):
        scores = score(v, side, TERM, FORM)
        top = tl.maximum(top, tl.max(tl.where(taking, scores, NO_SCORE), 1))
        shrink = tl.exp(sums.top - top)
        total = total * shrink
        moment = moment * shrink
    terms, moments, values, slopes = side_terms(v, taking, bound, top[:, None], side, TERM, FORM)
    if TERM == "moment":
        moment += tl.sum(moments, 1)
    slope = sums.slopes
    if TERM == "softplus":
        slope += tl.sum(slopes, 1)
    return Sums(total + tl.sum(terms, 1), top, moment, sums.of_values + tl.sum(values, 1), slope)


@triton.jit
def merge(total, moment, top, other, other_moment, other_top):
    """Two sums of e^score as one; one of nothing leaves the other as it is."""
    some = other != 0.0
    new = tl.where(some, tl.maximum(top, other_top), top)
    keep, add = tl.exp(top - new), tl.exp(tl.where(some, other_top, new) - new)
    return total * keep + other * add, moment * keep + other_moment * add, new


class End(NamedTuple):
    """What the gradient of pairs takes from the loss of one end, or from those of both."""

    bound: tl.tensor
    constant: tl.tensor  # dL/dv = share (constant + linear x) + added
    linear: tl.tensor
    level: tl.tensor  # running maxima: share = e^(score - level); else e^(score - shift)
    added: tl.tensor


FACTORS = tl.constexpr(4)  # constant, linear, level, added


@triton.jit
def end_of(bounds, factors, index, ok, length, AXIS: tl.constexpr, FORM: tl.constexpr):
    """From one side's bounds (length,) and factors (FACTORS, length)."""
    constant = tl.expand_dims(tl.load(factors + index, mask=ok, other=0.0), AXIS)
    linear, level = constant, constant
    if FORM.weight_grad:
        linear = tl.expand_dims(tl.load(factors + length + index, mask=ok, other=0.0), AXIS)
    if FORM.running:
        level = tl.expand_dims(tl.load(factors + 2 * length + index, mask=ok, other=0.0), AXIS)
    added = tl.expand_dims(tl.load(factors + 3 * length + index, mask=ok, other=0.0), AXIS)
    return End(bounds_of(bounds, index, ok, AXIS, FORM), constant, linear, level, added)


@triton.jit
def end_gradient(measured, members, end, side, TERM: tl.constexpr, FORM: tl.constexpr):
    """dL/dv of the pairs; the factors hold their scale where that is no ramp."""
    taking = taking_part(measured, members, end.bound, side, TERM, FORM)
    v = value_of(measured, FORM)
    if TERM == "exp" or TERM == "moment":
        grad = end.constant
        if TERM == "moment" and FORM.weight_grad:
            grad += end.linear * excess(v, side)
        grad *= tl.exp(score(v, side, TERM, FORM) - (end.level if FORM.running else side.shift))
        if TERM == "exp" and FORM.ramp:
            grad *= score_slope(v, side, FORM)
    else:
        active, term, slope = _pair_terms.additive(argument(v, end.bound, side, FORM), TERM)
        grad = end.constant * slope
    return tl.where(taking, grad + end.added, 0.0)


@triton.jit
def side_gradient(
    measured, members, bounds, factors, rows, row_ok, M, cols, col_ok, N, side,
    ROW_END: tl.constexpr, COL_END: tl.constexpr, TERM: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """dL/dv of the pairs of one side, from the losses of the rows and from those of the columns."""
    if ROW_END:
        of_row = end_of(bounds, factors, rows, row_ok, M, 1, FORM)
    if COL_END:
        of_col = end_of(bounds, factors, cols, col_ok, N, 0, FORM)
    if ROW_END and COL_END and not (FORM.running or FORM.bounded):
        # The same pairs with the same shares at both ends: one exponential serves both.
        both = End(
            of_row.bound, of_row.constant + of_col.constant, of_row.linear + of_col.linear, of_row.level,
            of_row.added + of_col.added,
        )  # fmt: skip
        grad = end_gradient(measured, members, both, side, TERM, FORM)
    else:
        grad = tl.zeros(measured.shape, FORM.dtype)
        if ROW_END:
            grad += end_gradient(measured, members, of_row, side, TERM, FORM)
        if COL_END:
            grad += end_gradient(measured, members, of_col, side, TERM, FORM)
    return grad
