"""Kernels of ranked_list. Per-row arrays: sums (6, parts, M) = sum, moment, maximum of the positives, of the negatives;
factors (6, M) = scale, level, log_denom of the positives, of the negatives."""

import triton
import triton.language as tl

from . import _pair
from ._pair import IGNORED, KEPT, NO_INDEX
from ._ranked_list import (
    NO_MAXIMUM,
    add_where,
    merge,
    set_result,
    tile_members,
    violation,
)

FINISH_BLOCK = 128


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def forward_rows(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_boundary: tl.float64, pos_temperature: tl.float64, neg_boundary: tl.float64, neg_temperature: tl.float64,
    pos_limit: tl.float64, neg_limit: tl.float64, sums, totals, active, M, N, part_tiles,
    RUNNING: tl.constexpr, EASY: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i, part = tl.program_id(0), tl.program_id(1)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    pos_sum, pos_moment = tl.zeros((BLOCK_M,), DTYPE), tl.zeros((BLOCK_M,), DTYPE)
    neg_sum, neg_moment = tl.zeros((BLOCK_M,), DTYPE), tl.zeros((BLOCK_M,), DTYPE)
    pos_top = tl.full((BLOCK_M,), NO_MAXIMUM if RUNNING else 0.0, DTYPE)
    neg_top = pos_top
    pos_count, neg_count = tl.zeros((BLOCK_M,), tl.int32), tl.zeros((BLOCK_M,), tl.int32)
    pos_dist, neg_dist = tl.zeros((BLOCK_M,), DTYPE), tl.zeros((BLOCK_M,), DTYPE)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        squared, norms, pos, neg, row_ok, row_scale, col_ok, col_scale = tile_members(
            x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state,
            y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state, rows, cols, M, N, pos_limit, neg_limit,
            EASY, APART, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        in_pos, in_neg = tl.sum(pos.to(tl.int32), 1), tl.sum(neg.to(tl.int32), 1)
        if tl.max(in_pos + in_neg, 0) > 0:
            # Several tiles of BLOCK share one byte, and all write the same.
            at = (i * BLOCK_M // TILE) * tl.cdiv(N, TILE) + tile * BLOCK_N // TILE
            tl.store(active + at, 1)
            distance = tl.sqrt(squared)
            v = violation(distance, _pair.scalar(pos_boundary, DTYPE), 1.0)
            temperature = _pair.scalar(pos_temperature, DTYPE)
            pos_sum, pos_moment, pos_top = add_where(pos_sum, pos_moment, pos_top, pos, v, temperature, RUNNING)
            v = violation(distance, _pair.scalar(neg_boundary, DTYPE), -1.0)
            temperature = _pair.scalar(neg_temperature, DTYPE)
            neg_sum, neg_moment, neg_top = add_where(neg_sum, neg_moment, neg_top, neg, v, temperature, RUNNING)
            pos_count += in_pos
            neg_count += in_neg
            pos_dist += tl.sum(tl.where(pos, distance, 0.0), 1)
            neg_dist += tl.sum(tl.where(neg, distance, 0.0), 1)
    parts = tl.num_programs(1)
    length = parts * M.to(tl.int64)
    at = sums + part * M.to(tl.int64) + rows
    mask = rows < M
    tl.store(at, pos_sum, mask=mask)
    tl.store(at + length, pos_moment, mask=mask)
    tl.store(at + 2 * length, pos_top, mask=mask)
    tl.store(at + 3 * length, neg_sum, mask=mask)
    tl.store(at + 4 * length, neg_moment, mask=mask)
    tl.store(at + 5 * length, neg_top, mask=mask)
    slot = totals + (i * parts + part) * 4
    tl.store(slot, tl.sum(pos_count.to(tl.float64), 0))
    tl.store(slot + 1, tl.sum(neg_count.to(tl.float64), 0))
    tl.store(slot + 2, tl.sum(pos_dist.to(tl.float64), 0))
    tl.store(slot + 3, tl.sum(neg_dist.to(tl.float64), 0))


@triton.jit(do_not_specialize=["M", "row_tiles"])
def forward_tiles(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    pos_boundary: tl.float64, pos_temperature: tl.float64, neg_boundary: tl.float64, neg_temperature: tl.float64,
    pos_limit: tl.float64, neg_limit: tl.float64, sums, totals, active, M, row_tiles,
    RUNNING: tl.constexpr, EASY: tl.constexpr, APART: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr,
    D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the upper triangle, of plain sums (no running maximum can be added atomically)."""
    i, j = _pair.upper_tile(tl.program_id(0), row_tiles)
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    squared, norms, pos, neg, row_ok, row_scale, col_ok, col_scale = tile_members(
        x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state,
        y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state, rows, cols, M, M, pos_limit, neg_limit,
        EASY, APART, SELF, HAS_IDS, D, PRECISION, DTYPE, BLOCK_K,
    )  # fmt: skip
    in_pos, in_neg = tl.sum(tl.sum(pos.to(tl.int32), 1), 0), tl.sum(tl.sum(neg.to(tl.int32), 1), 0)
    if in_pos + in_neg > 0:
        width = tl.cdiv(M, TILE)
        tl.store(active + (i * BLOCK_M // TILE) * width + j * BLOCK_N // TILE, 1)
        tl.store(active + (j * BLOCK_N // TILE) * width + i * BLOCK_M // TILE, 1)
        distance = tl.sqrt(squared)
        v = violation(distance, _pair.scalar(pos_boundary, DTYPE), 1.0)
        _add_to_both_ends(sums, v, pos, _pair.scalar(pos_temperature, DTYPE), rows, row_ok, cols, col_ok, M, i != j)
        v = violation(distance, _pair.scalar(neg_boundary, DTYPE), -1.0)
        temperature = _pair.scalar(neg_temperature, DTYPE)
        _add_to_both_ends(sums + 3 * M.to(tl.int64), v, neg, temperature, rows, row_ok, cols, col_ok, M, i != j)
        times = tl.where(i == j, 1.0, 2.0).to(tl.float64)
        slot = totals + i * 4
        tl.atomic_add(slot, times * in_pos, sem="relaxed")
        tl.atomic_add(slot + 1, times * in_neg, sem="relaxed")
        pos_dist = tl.sum(tl.sum(tl.where(pos, distance, 0.0), 1).to(tl.float64), 0)
        neg_dist = tl.sum(tl.sum(tl.where(neg, distance, 0.0), 1).to(tl.float64), 0)
        tl.atomic_add(slot + 2, times * pos_dist, sem="relaxed")
        tl.atomic_add(slot + 3, times * neg_dist, sem="relaxed")


@triton.jit
def _add_to_both_ends(sums, v, members, temperature, rows, row_ok, cols, col_ok, M, columns):
    e = tl.where(members, tl.exp(v * temperature), 0.0)
    tl.atomic_add(sums + rows, tl.sum(e, 1), mask=row_ok, sem="relaxed")
    tl.atomic_add(sums + M + rows, tl.sum(e * v, 1), mask=row_ok, sem="relaxed")
    if columns:
        tl.atomic_add(sums + cols, tl.sum(e, 0), mask=col_ok, sem="relaxed")
        tl.atomic_add(sums + M + cols, tl.sum(e * v, 0), mask=col_ok, sem="relaxed")


@triton.jit(do_not_specialize=["M", "parts"])
def finish_rows(
    sums, easy_squared, easy_row, gallery, state, all_nan, loss_out, row_stats, easy_index, totals, M, parts,
    pos_boundary: tl.float64, pos_temperature: tl.float64, pos_weight: tl.float64, neg_weight: tl.float64,
    pml_eps: tl.float64, EASY: tl.constexpr, APART: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss and row statistics from the sums of all parts, and the easy positive of each row."""
    program = tl.program_id(0)
    rows = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    kind = tl.load(state + rows, mask=inside, other=0)
    kept = (kind == KEPT) & (tl.load(all_nan) == 0)
    zero = tl.zeros((BLOCK,), DTYPE)
    pos_sum, pos_moment, pos_top = zero, zero, zero + NO_MAXIMUM
    neg_sum, neg_moment, neg_top = zero, zero, zero + NO_MAXIMUM
    length = parts * M.to(tl.int64)
    for part in range(parts):
        at = sums + part * M.to(tl.int64) + rows
        total, moment = tl.load(at, mask=inside, other=0.0), tl.load(at + length, mask=inside, other=0.0)
        top = tl.load(at + 2 * length, mask=inside, other=0.0)
        pos_sum, pos_moment, pos_top = merge(pos_sum, pos_moment, pos_top, total, moment, top)
        at += 3 * length
        total, moment = tl.load(at, mask=inside, other=0.0), tl.load(at + length, mask=inside, other=0.0)
        top = tl.load(at + 2 * length, mask=inside, other=0.0)
        neg_sum, neg_moment, neg_top = merge(neg_sum, neg_moment, neg_top, total, moment, top)
    if EASY:
        chosen = tl.load(easy_row + rows, mask=inside, other=NO_INDEX)
        found = kept & (chosen < NO_INDEX)
        distance = tl.sqrt(tl.where(found, tl.load(easy_squared + rows, mask=inside, other=0.0), 0.0))
        v = violation(distance, _pair.scalar(pos_boundary, DTYPE), 1.0)
        member = found & (v > 0.0)
        if APART:
            member = member & (distance > 0.0)
        score = tl.where(member, v * _pair.scalar(pos_temperature, DTYPE), NO_MAXIMUM)
        one = tl.where(member, 1.0, 0.0).to(DTYPE)
        pos_sum, pos_moment, pos_top = merge(pos_sum, pos_moment, pos_top, one, tl.where(member, v, 0.0), score)
        tl.store(easy_index + rows, tl.where(found, chosen, -1), mask=inside)
        tl.store(totals + program * 4, tl.sum(one.to(tl.float64), 0))
        tl.store(totals + program * 4 + 2, tl.sum(tl.where(member, distance, 0.0).to(tl.float64), 0))
    log_eps = tl.full((BLOCK,), float("-inf"), DTYPE)
    if APART:
        log_eps = tl.log(zero + _pair.scalar(pml_eps, DTYPE) * tl.load(gallery).to(DTYPE))
    pos_denom, pos_loss = set_result(pos_sum, pos_moment, pos_top, log_eps)
    neg_denom, neg_loss = set_result(neg_sum, neg_moment, neg_top, log_eps)
    loss = _pair.scalar(pos_weight, DTYPE) * pos_loss + _pair.scalar(neg_weight, DTYPE) * neg_loss
    loss = tl.where(kept, loss, tl.where(kind == IGNORED, 0.0, float("nan")))
    tl.store(loss_out + rows, loss, mask=inside)
    out = row_stats + rows
    stride = M.to(tl.int64)
    tl.store(out, tl.where(kept, pos_denom, 0.0), mask=inside)
    tl.store(out + stride, tl.where(kept, neg_denom, 0.0), mask=inside)
    tl.store(out + 2 * stride, tl.where(kept, pos_loss, 0.0), mask=inside)
    tl.store(out + 3 * stride, tl.where(kept, neg_loss, 0.0), mask=inside)


@triton.jit(do_not_specialize=["M"])
def gradient_factors(
    grad, row_stats, state, factors, M, pos_weight: tl.float64, neg_weight: tl.float64,
    RUNNING: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Without running maxima the denominator joins the scale, once for each row instead of once for each pair."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    kept = inside & (tl.load(state + rows, mask=inside, other=0) == KEPT)
    incoming = tl.load(grad + rows, mask=kept, other=0.0)
    stride = M.to(tl.int64)
    for index in tl.static_range(2):
        log_denom = tl.load(row_stats + index * stride + rows, mask=kept, other=0.0)
        level = tl.load(row_stats + (2 + index) * stride + rows, mask=kept, other=0.0)
        scale = incoming * _pair.scalar(pos_weight if index == 0 else neg_weight, DTYPE)
        if not RUNNING:
            # The log is -inf where the set is empty.
            scale = tl.where(log_denom > float("-inf"), scale * tl.exp(-log_denom), scale)
        out = factors + 3 * index * stride + rows
        tl.store(out, scale, mask=inside)
        tl.store(out + stride, level, mask=inside)
        tl.store(out + 2 * stride, log_denom, mask=inside)


@triton.jit(do_not_specialize=["M"])
def easy_weights(
    squared, norms, grad, row_stats, weight_out, M, pos_boundary: tl.float64, pos_temperature: tl.float64,
    pos_slope: tl.float64, pos_weight: tl.float64, EPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(dL/dd)/d of the easy positives, p = 1 up to the epsilon of eps_mode."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    of_pair = tl.load(squared + rows, mask=inside, other=0.0)
    scale = _pair.gradient_scale(of_pair, tl.load(norms + rows, mask=inside, other=0.0), EPS)
    # The forward has decided who is in the set: an empty one has no loss.
    level = tl.load(row_stats + 2 * M.to(tl.int64) + rows, mask=inside, other=0.0)
    some = (level != 0.0) & (scale != 0.0)
    v = violation(tl.sqrt(of_pair), _pair.scalar(pos_boundary, DTYPE), 1.0)
    log_denom = tl.load(row_stats + rows, mask=inside, other=0.0)
    share = tl.exp(tl.where(some, _pair.scalar(pos_temperature, DTYPE) * v - log_denom, 0.0))
    gradient = _pair.scalar(pos_weight, DTYPE) * share * (1.0 + _pair.scalar(pos_slope, DTYPE) * (v - level))
    weight = tl.load(grad + rows, mask=inside, other=0.0) * gradient * scale
    tl.store(weight_out + rows, tl.where(some, weight, 0.0), mask=inside)
