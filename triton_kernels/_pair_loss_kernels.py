"""Kernels of pair_loss's forward. sums (2, SUMS, parts, M): the `Sums` of the positives and of the negatives of each
row, and how many members they have. What a term does not need is neither written nor read."""

from typing import NamedTuple

import triton
import triton.language as tl

from . import _pair
from ._pair import IGNORED, NON_FINITE
from ._pair_loss import (
    NO_SCORE,
    TILE,
    add_to_rows,
    bounds_of,
    count,
    facts,
    in_tile,
    is_left,
    leave,
    measure_tile,
    merge,
    no_sums,
    of_count,
    of_tile,
    side_numbers,
    side_terms,
    taking_part,
    value_of,
)

FINISH_BLOCK = 128
SUMS = tl.constexpr(6)  # total, top, moment, of_values, slopes, members


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def forward_rows(
    f, g,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    pos_temperature: tl.float64, pos_shift: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    neg_temperature: tl.float64, neg_shift: tl.float64,
    bounds, sums, active, M, N, part_tiles,
    FORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i, part = tl.program_id(0), tl.program_id(1)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    # Once, and not for every tile: the addresses of all of them would be kept otherwise.
    row_facts = facts(f, rows, M, FORM)
    row_ok = row_facts[0]
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature, pos_shift, FORM)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature, neg_shift, FORM)
    pos_bound, neg_bound = bounds_of(bounds, rows, row_ok, 1, FORM), bounds_of(bounds + M, rows, row_ok, 1, FORM)
    pos_sums, neg_sums = no_sums(pos, BLOCK_M, FORM), no_sums(neg, BLOCK_M, FORM)
    none = tl.zeros((BLOCK_M,), tl.int32)
    pos_members, neg_members, pos_taking, neg_taking = none, none, none, none
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        pairs = measure_tile(f, g, rows, row_facts, cols, facts(g, cols, N, FORM), True, FORM, BLOCK_K)
        in_pos = taking_part(pairs.measured, pairs.positive, pos_bound, pos, FORM.pos, FORM)
        in_neg = taking_part(pairs.measured, pairs.negative, neg_bound, neg, FORM.neg, FORM)
        counts = count(pairs, in_pos, in_neg, 1)
        pos_members += of_count(counts, 0)
        neg_members += of_count(counts, 1)
        pos_taking += of_count(counts, 2)
        neg_taking += of_count(counts, 3)
        votes = in_tile(in_pos, in_neg)
        if votes != 0:
            # Several tiles of BLOCK share one byte, and all write the same.
            tl.store(active + (i * BLOCK_M // TILE) * tl.cdiv(N, TILE) + tile * BLOCK_N // TILE, 1)
            v = value_of(pairs.measured, FORM)
            # Most tiles have pairs of one side.
            if FORM.pos != "none":
                if of_tile(votes, 0) > 0:
                    pos_sums = add_to_rows(pos_sums, v, in_pos, pos_bound, pos, FORM.pos, FORM)
            if FORM.neg != "none":
                if of_tile(votes, 1) > 0:
                    neg_sums = add_to_rows(neg_sums, v, in_neg, neg_bound, neg, FORM.neg, FORM)
    parts, rows_of_all = tl.num_programs(1), M.to(tl.int64)
    at, length = sums + part * rows_of_all + rows, parts * rows_of_all
    _store_side(at, length, rows < M, pos_sums, pos_members, pos_taking, FORM.pos, FORM)
    _store_side(at + SUMS * length, length, rows < M, neg_sums, neg_members, neg_taking, FORM.neg, FORM)


@triton.jit
def _store_side(at, length, mask, sums, members, taking, TERM: tl.constexpr, FORM: tl.constexpr):
    if TERM != "none":
        tl.store(at, sums.total, mask=mask)
        if FORM.running:
            tl.store(at + length, sums.top, mask=mask)
        if TERM == "moment":
            tl.store(at + 2 * length, sums.moment, mask=mask)
        tl.store(at + 3 * length, sums.of_values, mask=mask)
        tl.store(at + 4 * length, sums.slopes if TERM == "softplus" else taking.to(FORM.dtype), mask=mask)
        tl.store(at + 5 * length, members.to(FORM.dtype), mask=mask)


@triton.jit(do_not_specialize=["M", "row_tiles"])
def forward_tiles(
    f, g,
    pos_scale: tl.float64, pos_base: tl.float64, pos_ramp: tl.float64, pos_origin: tl.float64,
    pos_temperature: tl.float64, pos_shift: tl.float64,
    neg_scale: tl.float64, neg_base: tl.float64, neg_ramp: tl.float64, neg_origin: tl.float64,
    neg_temperature: tl.float64, neg_shift: tl.float64,
    bounds, sums, active, near, M, row_tiles,
    NEARBY: tl.constexpr, NEAR_SIDE: tl.constexpr, FORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the upper triangle, added to its rows and columns (no running maximum can be added atomically)."""
    i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    if is_left(near, i, j, M, NEARBY, NEAR_SIDE, FORM, BLOCK_M):
        return
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_facts, col_facts = facts(f, rows, M, FORM), facts(g, cols, M, FORM)
    pairs = measure_tile(f, g, rows, row_facts, cols, col_facts, NEARBY, FORM, BLOCK_K)
    if leave(pairs, near, i, j, M, NEARBY, NEAR_SIDE, FORM):
        return
    pos = side_numbers(pos_scale, pos_base, pos_ramp, pos_origin, pos_temperature, pos_shift, FORM)
    neg = side_numbers(neg_scale, neg_base, neg_ramp, neg_origin, neg_temperature, neg_shift, FORM)
    of_rows = _end_of(pairs, bounds, rows, row_facts[0], M, pos, neg, 1, FORM)
    of_cols = _end_of(pairs, bounds, cols, col_facts[0], M, pos, neg, 0, FORM)
    above, beside = i * BLOCK_M // TILE, j * BLOCK_N // TILE
    if of_rows.votes != 0:
        tl.store(active + above * tl.cdiv(M, TILE) + beside, 1)
    if of_cols.votes != 0:
        tl.store(active + beside * tl.cdiv(M, TILE) + above, 1)
    v = value_of(pairs.measured, FORM)
    members = in_tile(pairs.positive, pairs.negative)
    if FORM.pos != "none":
        _add_side(sums, v, members, of_rows, of_cols, i != j, M, pos, 0, FORM.pos, FORM)
    if FORM.neg != "none":
        _add_side(sums + SUMS * M.to(tl.int64), v, members, of_rows, of_cols, i != j, M, neg, 1, FORM.neg, FORM)


class _End(NamedTuple):
    """The rows or the columns of a tile, and which pairs take part in their losses: the positives, the negatives."""

    index: tl.tensor
    ok: tl.tensor
    bounds: tuple
    taking: tuple
    counts: tl.tensor
    votes: tl.tensor  # `in_tile` of those that take part


@triton.jit
def _end_of(pairs, bounds, index, ok, M, pos, neg, AXIS: tl.constexpr, FORM: tl.constexpr):
    pos_bound, neg_bound = bounds_of(bounds, index, ok, AXIS, FORM), bounds_of(bounds + M, index, ok, AXIS, FORM)
    in_pos = taking_part(pairs.measured, pairs.positive, pos_bound, pos, FORM.pos, FORM)
    in_neg = taking_part(pairs.measured, pairs.negative, neg_bound, neg, FORM.neg, FORM)
    counts = count(pairs, in_pos, in_neg, AXIS)
    return _End(index, ok, (pos_bound, neg_bound), (in_pos, in_neg), counts, in_tile(in_pos, in_neg))


@triton.jit
def _add_side(
    sums, v, members, of_rows, of_cols, columns, M, side, SIDE: tl.constexpr, TERM: tl.constexpr, FORM: tl.constexpr
):  # fmt: skip
    """The pairs of one side, added to their rows and columns."""
    if of_tile(members, SIDE) > 0:
        _add_members(sums, of_rows, M, SIDE, FORM)
        if columns:
            _add_members(sums, of_cols, M, SIDE, FORM)
    if of_tile(of_rows.votes | of_cols.votes, SIDE) > 0:
        _add_terms(sums, v, of_rows, M, side, 1, SIDE, TERM, FORM)
        if columns:
            # Without bounds, what is computed of a pair for its row serves its column.
            _add_terms(sums, v, of_cols, M, side, 0, SIDE, TERM, FORM)


@triton.jit
def _add_members(sums, end, M, SIDE: tl.constexpr, FORM: tl.constexpr):
    members = of_count(end.counts, SIDE).to(FORM.dtype)
    tl.atomic_add(sums + 5 * M.to(tl.int64) + end.index, members, mask=end.ok, sem="relaxed")


@triton.jit
def _add_terms(sums, v, end, M, side, AXIS: tl.constexpr, SIDE: tl.constexpr, TERM: tl.constexpr, FORM: tl.constexpr):
    totals, moments, values, slopes = side_terms(v, end.taking[SIDE], end.bounds[SIDE], side.shift, side, TERM, FORM)
    at, length = sums + end.index, M.to(tl.int64)
    tl.atomic_add(at, tl.sum(totals, AXIS), mask=end.ok, sem="relaxed")
    if TERM == "moment":
        tl.atomic_add(at + 2 * length, tl.sum(moments, AXIS), mask=end.ok, sem="relaxed")
    tl.atomic_add(at + 3 * length, tl.sum(values, AXIS), mask=end.ok, sem="relaxed")
    slope = tl.sum(slopes, AXIS) if TERM == "softplus" else of_count(end.counts, 2 + SIDE).to(FORM.dtype)
    tl.atomic_add(at + 4 * length, slope, mask=end.ok, sem="relaxed")


@triton.jit(do_not_specialize=["M", "parts"])
def finish_rows(
    sums, state, all_nan, stats_out, log_sums_out, sums_out, members_out, slopes_out, M, parts,
    pos_shift: tl.float64, neg_shift: tl.float64,
    POS: tl.constexpr, NEG: tl.constexpr, RUNNING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics of each row from the sums of all parts; in double, since a log-sum-exp cancels its exponent."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    kind = tl.load(state + rows, mask=inside, other=0)
    lost = (kind == NON_FINITE) | ((tl.load(all_nan) != 0) & (kind != IGNORED))
    length = M.to(tl.int64)
    _finish_side(
        sums + rows, stats_out + rows, log_sums_out + rows, sums_out + rows, members_out + rows, slopes_out + rows,
        lost, inside, parts, length, pos_shift, POS, RUNNING, BLOCK,
    )  # fmt: skip
    out = length + rows
    _finish_side(
        sums + SUMS * parts * length + rows, stats_out + out, log_sums_out + out, sums_out + out, members_out + out,
        slopes_out + out, lost, inside, parts, length, neg_shift, NEG, RUNNING, BLOCK,
    )  # fmt: skip


@triton.jit
def _finish_side(
    sums, stats_out, log_sums_out, sums_out, members_out, slopes_out, lost, inside, parts, length, shift,
    TERM: tl.constexpr, RUNNING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    zero = tl.zeros((BLOCK,), tl.float64)
    total, top, moment, values, slopes, members = zero, zero + NO_SCORE, zero, zero, zero, zero
    if TERM != "none":
        step = parts * length
        for part in range(parts):
            at = sums + part * length
            other = tl.load(at, mask=inside, other=0.0).to(tl.float64)
            if TERM == "exp" or TERM == "moment":
                other_top, other_moment = zero + _pair.scalar(shift, tl.float64), zero
                if RUNNING:
                    other_top = tl.load(at + step, mask=inside, other=0.0).to(tl.float64)
                if TERM == "moment":
                    other_moment = tl.load(at + 2 * step, mask=inside, other=0.0).to(tl.float64)
                total, moment, top = merge(total, moment, top, other, other_moment, other_top)
            else:
                total += other
            values += tl.load(at + 3 * step, mask=inside, other=0.0).to(tl.float64)
            slopes += tl.load(at + 4 * step, mask=inside, other=0.0).to(tl.float64)
            members += tl.load(at + 5 * step, mask=inside, other=0.0).to(tl.float64)
    some = total != 0.0
    log_sum = tl.where(some, tl.log(tl.where(some, total, 1.0)) + top, float("-inf"))
    stat = total
    if TERM == "exp":
        stat = log_sum
    elif TERM == "moment":
        stat = tl.where(some, moment / tl.where(some, total, 1.0), 0.0)
    if TERM != "moment":
        log_sum = zero - float("inf")
    tl.store(stats_out, tl.where(lost, float("nan"), stat), mask=inside)
    tl.store(log_sums_out, tl.where(lost, float("nan"), log_sum), mask=inside)
    tl.store(sums_out, tl.where(lost, float("nan"), values), mask=inside)
    tl.store(members_out, tl.where(lost, 0.0, members), mask=inside)
    tl.store(slopes_out, tl.where(lost, 0.0, slopes), mask=inside)
