"""Pair losses of a tile of pairs: the formulae of csrc/common/pair_loss.h, by name.

A pair is a positive or a negative, so what is computed of it is computed once, with the numbers of its side: pos and
neg are (scale, base, ramp, origin). AXIS is 1 for the losses of the rows, whose sums go over the columns, and 0 for
those of the columns.
"""

import triton
import triton.language as tl

from . import _pair, _pair_terms

NO_SCORE = tl.constexpr(-1e30)


@triton.jit
def side_numbers(scale, base, ramp, origin, DTYPE: tl.constexpr):
    return _pair.scalar(scale, DTYPE), _pair.scalar(base, DTYPE), _pair.scalar(ramp, DTYPE), _pair.scalar(origin, DTYPE)


@triton.jit
def of_side(same, pos, neg, SIDES: tl.constexpr):
    """The number of each pair's side."""
    if SIDES == "both":
        return tl.where(same, pos, neg)
    elif SIDES == "positive":
        return pos
    else:
        return neg


@triton.jit
def of_end(values, index, ok, length, same, AXIS: tl.constexpr, SIDES: tl.constexpr):
    """What (2, length) values hold of each pair: of its side, and of its row or column."""
    pos = tl.load(values + index, mask=ok, other=0.0)
    neg = tl.load(values + length + index, mask=ok, other=0.0)
    return of_side(same, tl.expand_dims(pos, AXIS), tl.expand_dims(neg, AXIS), SIDES)


@triton.jit
def tile_pairs(
    x, x_operand, y, y_operand, rows, row_facts, cols, col_facts,
    VALUE: tl.constexpr, SIDES: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Similarities or squared distances of a tile, sums of squared norms, who is a positive, and who is of a side."""
    row_ok, row_scale, row_norms, row_labels, row_ids = row_facts
    col_ok, col_scale, col_norms, col_labels, col_ids = col_facts
    pairs = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
    norms = row_norms[:, None] + col_norms[None, :]
    if VALUE == "similarity":
        measured = _pair.tile_product(x_operand, y_operand, rows, cols, row_ok, col_ok, D, PRECISION, DTYPE, BLOCK_K)
        measured = measured * (row_scale[:, None] * col_scale[None, :])
    else:
        measured = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, pairs,
            D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
    members = pairs
    same = row_labels[:, None] == col_labels[None, :]
    if SIDES == "positive":
        members = members & same
    elif SIDES == "negative":
        members = members & (row_labels[:, None] != col_labels[None, :])
    return measured, norms, same, members


@triton.jit
def value_of(measured, VALUE: tl.constexpr):
    if VALUE == "distance":
        return tl.sqrt(measured)
    else:
        return measured


@triton.jit
def gradient_of_value(grad, measured, norms, VALUE: tl.constexpr, EPS: tl.constexpr):
    """What multiplies the other row, or f_i - g_j, from dL/d(value)."""
    if VALUE == "similarity":
        return grad
    elif VALUE == "distance":
        return grad * _pair.gradient_scale(measured, norms, EPS)
    else:
        return 2.0 * grad


@triton.jit
def score_slope(v, scale, ramp, origin, RAMP: tl.constexpr):
    """Term "exp": dscore/dv, the score is this times v - base. The ramp is a constant of the gradient."""
    if RAMP:
        return scale * tl.where(ramp == 0.0, 1.0, tl.maximum(ramp * (v - origin), 0.0))
    else:
        return scale


@triton.jit
def taking_part(
    v, same, members, bounds, index, ok, length, pos, neg,
    AXIS: tl.constexpr, SIDES: tl.constexpr, TERM: tl.constexpr, BOUNDED: tl.constexpr, RAMP: tl.constexpr,
):  # fmt: skip
    """The argument x of each pair's term (of "exp" its score), dx/dv, and which members take part."""
    scale, base = of_side(same, pos[0], neg[0], SIDES), of_side(same, pos[1], neg[1], SIDES)
    bound = base
    if BOUNDED:
        bound = of_end(bounds, index, ok, length, same, AXIS, SIDES)
    if TERM == "exp":
        ramp, origin = of_side(same, pos[2], neg[2], SIDES), of_side(same, pos[3], neg[3], SIDES)
        slope = score_slope(v, scale, ramp, origin, RAMP)
        x = slope * (v - base)
        if BOUNDED:
            members = members & (scale * (v - bound) > 0.0)
    else:
        slope = scale
        x = scale * (v - bound)
        active, term, term_slope = _pair_terms.additive(x, TERM)
        members = members & active
    return x, slope, members


@triton.jit
def under_top(total, top, x, members):
    """Of each row: the sum of e^(x - top), and its exponent, ready for the members' x."""
    new = tl.maximum(top, tl.max(tl.where(members, x, NO_SCORE), 1))
    return total * tl.exp(top - new), new


@triton.jit
def merge(total, top, other, other_top):
    """Two sums of e^score as one; one of nothing leaves the other as it is."""
    some = other != 0.0
    new = tl.where(some, tl.maximum(top, other_top), top)
    return total * tl.exp(top - new) + other * tl.exp(tl.where(some, other_top, new) - new), new


@triton.jit
def side_sums(members, term, v, slope, AXIS: tl.constexpr):
    """Sums of the terms, the values and the slopes of one side."""
    terms, values = tl.sum(tl.where(members, term, 0.0), AXIS), tl.sum(tl.where(members, v, 0.0), AXIS)
    return terms, values, tl.sum(tl.where(members, slope, 0.0), AXIS)


@triton.jit
def end_gradient(
    v, same, members, bounds, grad_stats, grad_sums, stats, index, ok, length, pos, neg,
    AXIS: tl.constexpr, SIDES: tl.constexpr, TERM: tl.constexpr, BOUNDED: tl.constexpr, RAMP: tl.constexpr,
):  # fmt: skip
    """dL/dv of the pairs from the statistics of the rows, or from those of the columns."""
    x, slope, taking = taking_part(
        v, same, members, bounds, index, ok, length, pos, neg, AXIS, SIDES, TERM, BOUNDED, RAMP
    )
    if TERM == "exp":
        share = tl.exp(x - of_end(stats, index, ok, length, same, AXIS, SIDES))
    else:
        active, term, share = _pair_terms.additive(x, TERM)
    grad = of_end(grad_stats, index, ok, length, same, AXIS, SIDES) * share * slope
    return tl.where(taking, grad + of_end(grad_sums, index, ok, length, same, AXIS, SIDES), 0.0)
