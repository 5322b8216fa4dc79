"""Kernels of triplet: one program an anchor, whose distances to the whole gallery stand in a row of `values`.

`order` is the gallery sorted by label; the positives of an anchor stand there from `begin` to `end`. A pair that does
not count has the distance +inf.
"""

import triton
import triton.language as tl

from . import _pair
from ._pair import NO_INDEX
from ._pair_terms import additive


@triton.jit(do_not_specialize=["M", "N", "first"])
def distances(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    active, values, M, N, first,
    ONLY_ACTIVE: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of the rows from `first`. ONLY_ACTIVE: tiles that are not marked get +inf unseen."""
    program, col_tiles = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    i, j = first // BLOCK_M + program // col_tiles, program % col_tiles
    rows = i.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = j.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < M)[:, None] & (cols < N)[None, :]
    at = values + (rows - first)[:, None] * N + cols[None, :]
    wanted = True
    if ONLY_ACTIVE:
        wanted = tl.load(active + (i * BLOCK_M // TILE) * tl.cdiv(N, TILE) + j * BLOCK_N // TILE) != 0
    if wanted:
        row_ok, row_scale, row_norms, _, row_ids = _pair.facts(
            x_scale, x_norms, x_labels, x_ids, x_state, rows, rows < M, HAS_IDS
        )
        col_ok, col_scale, col_norms, _, col_ids = _pair.facts(
            y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS
        )
        pairs = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
        squared = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale,
            row_norms[:, None] + col_norms[None, :], pairs, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        tl.store(at, tl.where(pairs, tl.sqrt(squared), float("inf")), mask=inside)
    else:
        tl.store(at, tl.full((BLOCK_M, BLOCK_N), float("inf"), DTYPE), mask=inside)


@triton.jit
def _positives(row, order, at, last, BLOCK_P: tl.constexpr):
    """Columns and distances of the positives at.. of an anchor; +inf for none."""
    place = at + tl.arange(0, BLOCK_P)
    columns = tl.load(order + place, mask=place < last, other=0)
    return columns, tl.load(row + columns, mask=place < last, other=float("inf")), place < last


@triton.jit
def _negatives(row, labels, own, c, N, BLOCK_N: tl.constexpr):
    """Columns c.. and their distances, +inf of all that are no negatives."""
    cols = (c + tl.arange(0, BLOCK_N)).to(tl.int64)
    other = (cols < N) & (tl.load(labels + cols, mask=cols < N, other=0) != own)
    return cols, tl.load(row + cols, mask=other, other=float("inf")), other


@triton.jit
def _bounds(distance, margin):
    return tl.where(distance < float("inf"), distance + margin, -float("inf"))


@triton.jit(do_not_specialize=["N", "first"])
def sums(
    values, x_labels, y_labels, order, begin, end, active, cost_out, nonzero_out, count_out, N, first,
    margin: tl.float64,
    TERM: tl.constexpr, DTYPE: tl.constexpr, TILE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """With all negatives."""
    anchor = first + tl.program_id(0).to(tl.int64)
    row, own = values + (anchor - first) * N, tl.load(x_labels + anchor)
    start, last = tl.load(begin + anchor), tl.load(end + anchor)
    tiles = active + anchor // TILE * tl.cdiv(N, TILE)
    cost = tl.zeros((BLOCK_P,), DTYPE)
    nonzero = tl.zeros((BLOCK_P,), tl.int64)
    positives = tl.zeros((BLOCK_P,), tl.int64)
    negatives = tl.zeros((BLOCK_N,), tl.int64)
    for at in range(start, last, BLOCK_P):
        columns, near, there = _positives(row, order, at, last, BLOCK_P)
        bound = _bounds(near, _pair.scalar(margin, DTYPE))
        positives += (near < float("inf")).to(tl.int64)
        for c in range(0, N, BLOCK_N):
            _, far, _ = _negatives(row, y_labels, own, c, N, BLOCK_N)
            negatives += ((far < float("inf")) & (at == start)).to(tl.int64)
            takes_part, term, _ = additive(bound[:, None] - far[None, :], TERM)
            term = tl.where(takes_part, term, 0.0)
            cost += tl.sum(term, 1)
            costing = tl.sum((term > 0.0).to(tl.int64), 1)
            nonzero += costing
            if tl.sum(costing, 0) > 0:
                tl.store(tiles + c // TILE, 1)
        tl.store(tiles + columns // TILE, tl.full((BLOCK_P,), 1, tl.uint8), mask=there)
    tl.store(cost_out + anchor, tl.sum(cost, 0))
    tl.store(nonzero_out + anchor, tl.sum(nonzero, 0))
    tl.store(count_out + anchor, tl.sum(positives, 0) * tl.sum(negatives, 0))


@triton.jit
def _nearest_beyond(
    x, x_scale, x_norms, y, y_scale, y_norms, row, labels, anchor, own, columns, near, N,
    SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Distance and column of the semi-hard negative of each positive; NO_INDEX for none."""
    best = tl.full((BLOCK_P,), float("inf"), DTYPE)
    best_index = tl.full((BLOCK_P,), NO_INDEX, tl.int64)
    rows = tl.zeros((BLOCK_P,), tl.int64) + anchor
    scale, norm = tl.load(x_scale + rows), tl.load(x_norms + rows)
    there = near < float("inf")
    limit, limit_index = near * near, tl.where(there, columns, NO_INDEX)
    for c in range(0, N, BLOCK_N):
        cols, far, other = _negatives(row, labels, own, c, N, BLOCK_N)
        norms = norm[:, None] + tl.load(y_norms + cols, mask=other, other=0.0)[None, :]
        squared = tl.zeros((BLOCK_P, BLOCK_N), DTYPE) + (far * far)[None, :]
        candidates = _pair.beyond_positive(
            squared, limit, limit_index, best, norms, there[:, None] & (far < float("inf"))[None, :], cols,
            x, y, y_scale, y_norms, rows, scale, norm, SHARE, D, DTYPE,
        )  # fmt: skip
        best, best_index = _pair.offer(
            best, best_index, squared, norms, candidates, cols, x, y, y_scale, y_norms, rows, scale, norm,
            False, SHARE, D, DTYPE,
        )  # fmt: skip
    return tl.sqrt(best), best_index


@triton.jit(do_not_specialize=["N", "first"])
def semihard_sums(
    values, x, x_scale, x_norms, x_labels, y, y_scale, y_norms, y_labels, order, begin, end,
    cost_out, nonzero_out, count_out, N, first, margin: tl.float64,
    TERM: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    anchor = first + tl.program_id(0).to(tl.int64)
    row, own = values + (anchor - first) * N, tl.load(x_labels + anchor)
    last = tl.load(end + anchor)
    cost = tl.zeros((BLOCK_P,), DTYPE)
    nonzero = tl.zeros((BLOCK_P,), tl.int64)
    count = tl.zeros((BLOCK_P,), tl.int64)
    for at in range(tl.load(begin + anchor), last, BLOCK_P):
        columns, near, _ = _positives(row, order, at, last, BLOCK_P)
        far, index = _nearest_beyond(
            x, x_scale, x_norms, y, y_scale, y_norms, row, y_labels, anchor, own, columns, near, N,
            SHARE, D, DTYPE, BLOCK_P, BLOCK_N,
        )  # fmt: skip
        found = index < NO_INDEX
        takes_part, term, _ = additive(_bounds(near, _pair.scalar(margin, DTYPE)) - far, TERM)
        term = tl.where(takes_part & found, term, 0.0)
        cost += term
        nonzero += (term > 0.0).to(tl.int64)
        count += found.to(tl.int64)
    tl.store(cost_out + anchor, tl.sum(cost, 0))
    tl.store(nonzero_out + anchor, tl.sum(nonzero, 0))
    tl.store(count_out + anchor, tl.sum(count, 0))


@triton.jit
def _weight(distance, norms, slope, EPS: tl.constexpr):
    """dL/d(d^2) of dL/dd."""
    scale = _pair.gradient_scale(distance * distance, norms, EPS)
    return tl.where(slope != 0.0, 0.5 * slope * scale, 0.0)


@triton.jit(do_not_specialize=["N", "first"])
def weights(
    values, x_labels, x_norms, y_labels, y_norms, order, begin, end, grad, out, N, first, margin: tl.float64,
    TERM: tl.constexpr, EPS: tl.constexpr, DTYPE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradient of the pairs' squared distances, with all negatives."""
    anchor = first + tl.program_id(0).to(tl.int64)
    row, own = values + (anchor - first) * N, tl.load(x_labels + anchor)
    start, last = tl.load(begin + anchor), tl.load(end + anchor)
    incoming, norm = tl.load(grad + anchor), tl.load(x_norms + anchor)
    to = out + (anchor - first) * N
    for c in range(0, N, BLOCK_N):
        cols, far, other = _negatives(row, y_labels, own, c, N, BLOCK_N)
        slopes = tl.zeros((BLOCK_N,), DTYPE)
        for at in range(start, last, BLOCK_P):
            _, near, _ = _positives(row, order, at, last, BLOCK_P)
            bound = _bounds(near, _pair.scalar(margin, DTYPE))
            takes_part, _, slope = additive(bound[:, None] - far[None, :], TERM)
            slopes += tl.sum(tl.where(takes_part, slope, 0.0), 0)
        norms = norm + tl.load(y_norms + cols, mask=other, other=0.0)
        slopes = tl.where(slopes != 0.0, -incoming * slopes, 0.0)
        tl.store(to + cols, _weight(far, norms, slopes, EPS), mask=other)
    for at in range(start, last, BLOCK_P):
        columns, near, there = _positives(row, order, at, last, BLOCK_P)
        bound = _bounds(near, _pair.scalar(margin, DTYPE))
        slopes = tl.zeros((BLOCK_P,), DTYPE)
        for c in range(0, N, BLOCK_N):
            _, far, _ = _negatives(row, y_labels, own, c, N, BLOCK_N)
            takes_part, _, slope = additive(bound[:, None] - far[None, :], TERM)
            slopes += tl.sum(tl.where(takes_part, slope, 0.0), 1)
        norms = norm + tl.load(y_norms + columns, mask=there, other=0.0)
        slopes = tl.where(slopes != 0.0, incoming * slopes, 0.0)
        tl.store(to + columns, _weight(near, norms, slopes, EPS), mask=there)


@triton.jit(do_not_specialize=["N", "first"])
def semihard_weights(
    values, x, x_scale, x_norms, x_labels, y, y_scale, y_norms, y_labels, order, begin, end, grad, out, N, first,
    margin: tl.float64,
    TERM: tl.constexpr, EPS: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Likewise with semi-hard negatives, one of which several positives may have chosen."""
    anchor = first + tl.program_id(0).to(tl.int64)
    row, own = values + (anchor - first) * N, tl.load(x_labels + anchor)
    start, last = tl.load(begin + anchor), tl.load(end + anchor)
    incoming, norm = tl.load(grad + anchor), tl.load(x_norms + anchor)
    to = out + (anchor - first) * N
    for c in range(0, N, BLOCK_N):
        cols, distance, other = _negatives(row, y_labels, own, c, N, BLOCK_N)
        tl.store(to + cols, tl.zeros((BLOCK_N,), DTYPE), mask=other)
    tl.debug_barrier()  # what one thread has written, another may read
    for at in range(start, last, BLOCK_P):
        columns, near, there = _positives(row, order, at, last, BLOCK_P)
        far, index = _nearest_beyond(
            x, x_scale, x_norms, y, y_scale, y_norms, row, y_labels, anchor, own, columns, near, N,
            SHARE, D, DTYPE, BLOCK_P, BLOCK_N,
        )  # fmt: skip
        found = index < NO_INDEX
        takes_part, _, slope = additive(_bounds(near, _pair.scalar(margin, DTYPE)) - far, TERM)
        slope = tl.where(takes_part & found, incoming * slope, 0.0)
        norms = norm + tl.load(y_norms + columns, mask=there, other=0.0)
        tl.store(to + columns, _weight(near, norms, slope, EPS), mask=there)
        norms = norm + tl.load(y_norms + index, mask=found, other=0.0)
        push = _weight(far, norms, slope, EPS)
        for c in range(0, N, BLOCK_N):
            cols, distance, other = _negatives(row, y_labels, own, c, N, BLOCK_N)
            pushed = tl.sum(tl.where(index[:, None] == cols[None, :], push[:, None], 0.0), 0)
            before = tl.load(to + cols, mask=other, other=0.0)
            tl.store(to + cols, before - pushed, mask=other)
        tl.debug_barrier()
