"""Kernels of pair_loss's forward. sums (2, 5, parts, M): of the positives and of the negatives of each row the sum of
terms, of "exp" its exponent, then values, members and slopes. A side that does not take part is neither written nor
read."""

import triton
import triton.language as tl

from . import _pair
from ._pair import IGNORED, NON_FINITE, facts
from ._pair_loss import (
    NO_SCORE,
    merge,
    of_side,
    side_numbers,
    side_sums,
    taking_part,
    tile_pairs,
    under_top,
    value_of,
)
from ._pair_terms import additive

FINISH_BLOCK = 128
SUMS = tl.constexpr(5)


@triton.jit
def _any(members):
    return tl.max(tl.max(members.to(tl.int32), 1), 0) > 0


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def forward_rows(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    pos_shift: tl.float64, neg_shift: tl.float64, bounds, sums, active, M, N, part_tiles,
    RUNNING: tl.constexpr, VALUE: tl.constexpr, TERM: tl.constexpr, SIDES: tl.constexpr, BOUNDED: tl.constexpr,
    RAMP: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i, part = tl.program_id(0), tl.program_id(1)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Once, and not for every tile: the addresses of all of them would be kept otherwise.
    row_facts = facts(x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS)
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, DTYPE)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, DTYPE)
    zero = tl.zeros((BLOCK_M,), DTYPE)
    pos_total, pos_values, pos_members, pos_slopes = zero, zero, zero, zero
    neg_total, neg_values, neg_members, neg_slopes = zero, zero, zero, zero
    pos_top = tl.full((BLOCK_M,), NO_SCORE if RUNNING else pos_shift, DTYPE)
    neg_top = tl.full((BLOCK_M,), NO_SCORE if RUNNING else neg_shift, DTYPE)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        col_facts = facts(y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS)
        measured, norms, same, members = tile_pairs(
            x, x_operand, y, y_operand, rows, row_facts, cols, col_facts,
            VALUE, SIDES, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        v = value_of(measured, VALUE)
        argument, argument_slope, taking = taking_part(
            v, same, members, bounds, rows, row_facts[0], M, pos, neg, 1, SIDES, TERM, BOUNDED, RAMP
        )
        if SIDES != "negative":
            pos_members += tl.sum((members & same).to(DTYPE), 1)
        if SIDES != "positive":
            neg_members += tl.sum((members & (same == 0)).to(DTYPE), 1)
        if _any(taking):
            # Several tiles of BLOCK share one byte, and all write the same.
            tl.store(active + (i * BLOCK_M // TILE) * tl.cdiv(N, TILE) + tile * BLOCK_N // TILE, 1)
            in_pos, in_neg = taking & same, taking & (same == 0)
            if TERM == "exp":
                if RUNNING:
                    pos_total, pos_top = under_top(pos_total, pos_top, argument, in_pos)
                    neg_total, neg_top = under_top(neg_total, neg_top, argument, in_neg)
                term = tl.exp(argument - of_side(same, pos_top[:, None], neg_top[:, None], SIDES))
                slope = tl.full(v.shape, 1.0, DTYPE)
            else:
                active_pairs, term, slope = additive(argument, TERM)
            if SIDES != "negative":
                terms, values, slopes = side_sums(in_pos, term, v, slope, 1)
                pos_total += terms
                pos_values += values
                pos_slopes += slopes
            if SIDES != "positive":
                terms, values, slopes = side_sums(in_neg, term, v, slope, 1)
                neg_total += terms
                neg_values += values
                neg_slopes += slopes
    length = tl.num_programs(1) * M.to(tl.int64)
    at, mask = sums + part * M.to(tl.int64) + rows, rows < M
    if SIDES != "negative":
        _store_side(at, length, mask, pos_total, pos_top, pos_values, pos_members, pos_slopes)
    if SIDES != "positive":
        _store_side(at + SUMS * length, length, mask, neg_total, neg_top, neg_values, neg_members, neg_slopes)


@triton.jit
def _store_side(at, length, mask, total, top, values, members, slopes):
    tl.store(at, total, mask=mask)
    tl.store(at + length, top, mask=mask)
    tl.store(at + 2 * length, values, mask=mask)
    tl.store(at + 3 * length, members, mask=mask)
    tl.store(at + 4 * length, slopes, mask=mask)


@triton.jit(do_not_specialize=["M", "row_tiles"])
def forward_tiles(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    pos_shift: tl.float64, neg_shift: tl.float64, bounds, sums, active, M, row_tiles,
    VALUE: tl.constexpr, TERM: tl.constexpr, SIDES: tl.constexpr, BOUNDED: tl.constexpr,
    RAMP: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the upper triangle, added to its rows and columns (no running maximum can be added atomically)."""
    i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, DTYPE)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, DTYPE)
    row_facts = facts(x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS)
    col_facts = facts(y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < M, HAS_IDS)
    measured, norms, same, members = tile_pairs(
        x, x_operand, y, y_operand, rows, row_facts, cols, col_facts,
        VALUE, SIDES, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
    )  # fmt: skip
    v = value_of(measured, VALUE)
    above, beside = i * BLOCK_M // TILE, j * BLOCK_N // TILE
    row_active, col_active = active + above * tl.cdiv(M, TILE) + beside, active + beside * tl.cdiv(M, TILE) + above
    # One end of one side after the other: all at once take more registers than there are.
    if SIDES != "negative":
        of_one, top = members & same, _pair.scalar(pos_shift, DTYPE)
        _add_to_end(
            sums, row_active, v, same, of_one, bounds, rows, row_facts[0], M, pos, neg, top,
            1, "positive", TERM, BOUNDED, RAMP, DTYPE,
        )  # fmt: skip
        if i != j:
            _add_to_end(
                sums, col_active, v, same, of_one, bounds, cols, col_facts[0], M, pos, neg, top,
                0, "positive", TERM, BOUNDED, RAMP, DTYPE,
            )  # fmt: skip
    if SIDES != "positive":
        of_one, top = members & (same == 0), _pair.scalar(neg_shift, DTYPE)
        _add_to_end(
            sums + SUMS * M.to(tl.int64), row_active, v, same, of_one, bounds, rows, row_facts[0], M, pos, neg, top,
            1, "negative", TERM, BOUNDED, RAMP, DTYPE,
        )  # fmt: skip
        if i != j:
            _add_to_end(
                sums + SUMS * M.to(tl.int64), col_active, v, same, of_one, bounds, cols, col_facts[0], M, pos, neg, top,
                0, "negative", TERM, BOUNDED, RAMP, DTYPE,
            )  # fmt: skip


@triton.jit
def _add_to_end(
    sums, active, v, same, members, bounds, index, ok, M, pos, neg, top, AXIS: tl.constexpr,
    SIDE: tl.constexpr, TERM: tl.constexpr, BOUNDED: tl.constexpr, RAMP: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    argument, argument_slope, taking = taking_part(
        v, same, members, bounds, index, ok, M, pos, neg, AXIS, SIDE, TERM, BOUNDED, RAMP
    )
    at, length = sums + index, M.to(tl.int64)
    tl.atomic_add(at + 3 * length, tl.sum(members.to(DTYPE), AXIS), mask=ok, sem="relaxed")
    if _any(taking):
        tl.store(active, 1)
        if TERM == "exp":
            term, slope = tl.exp(argument - top), tl.full(v.shape, 1.0, DTYPE)
        else:
            active_pairs, term, slope = additive(argument, TERM)
        terms, values, slopes = side_sums(taking, term, v, slope, AXIS)
        tl.atomic_add(at, terms, mask=ok, sem="relaxed")
        tl.atomic_add(at + 2 * length, values, mask=ok, sem="relaxed")
        tl.atomic_add(at + 4 * length, slopes, mask=ok, sem="relaxed")


@triton.jit(do_not_specialize=["M", "parts"])
def finish_rows(
    sums, state, all_nan, stats_out, sums_out, members_out, slopes_out, M, parts,
    pos_shift: tl.float64, neg_shift: tl.float64, RUNNING: tl.constexpr, SIDES: tl.constexpr, TERM: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics of each row from the sums of all parts; in double, since a log-sum-exp cancels its exponent."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    kind = tl.load(state + rows, mask=inside, other=0)
    lost = (kind == NON_FINITE) | ((tl.load(all_nan) != 0) & (kind != IGNORED))
    length = M.to(tl.int64)
    _finish_side(
        sums + rows, stats_out + rows, sums_out + rows, members_out + rows, slopes_out + rows, lost, inside, parts,
        length, _pair.scalar(pos_shift, tl.float64), SIDES != "negative", RUNNING, TERM, BLOCK,
    )  # fmt: skip
    out = length + rows
    _finish_side(
        sums + SUMS * parts * length + rows, stats_out + out, sums_out + out, members_out + out, slopes_out + out,
        lost, inside, parts, length, _pair.scalar(neg_shift, tl.float64), SIDES != "positive", RUNNING, TERM, BLOCK,
    )  # fmt: skip


@triton.jit
def _finish_side(
    sums, stats_out, sums_out, members_out, slopes_out, lost, inside, parts, length, shift,
    WANTED: tl.constexpr, RUNNING: tl.constexpr, TERM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros((BLOCK,), tl.float64)
    stat, top, values, members, slopes = zero, zero + NO_SCORE, zero, zero, zero
    if WANTED:
        step = parts * length
        for part in range(parts):
            at = sums + part * length
            other = tl.load(at, mask=inside, other=0.0).to(tl.float64)
            if TERM == "exp":
                other_top = zero + shift
                if RUNNING:
                    other_top = tl.load(at + step, mask=inside, other=0.0).to(tl.float64)
                stat, top = merge(stat, top, other, other_top)
            else:
                stat += other
            values += tl.load(at + 2 * step, mask=inside, other=0.0).to(tl.float64)
            members += tl.load(at + 3 * step, mask=inside, other=0.0).to(tl.float64)
            slopes += tl.load(at + 4 * step, mask=inside, other=0.0).to(tl.float64)
    if TERM == "exp":
        stat = tl.where(stat == 0.0, float("-inf"), tl.log(tl.where(stat == 0.0, 1.0, stat)) + top)
    tl.store(stats_out, tl.where(lost, float("nan"), stat), mask=inside)
    tl.store(sums_out, tl.where(lost, float("nan"), values), mask=inside)
    tl.store(members_out, tl.where(lost, 0.0, members), mask=inside)
    tl.store(slopes_out, tl.where(lost, 0.0, slopes), mask=inside)
