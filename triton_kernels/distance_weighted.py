"""distance_weighted: sums of the weights by tiles, then the tile and the column of each draw."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _pair, _problem
from ._launch import launch
from ._pair import KEPT

SUMS_BYTES = 128 << 20  # largest workspace of the sums by row and column tile
MOST_DRAWS = 2**30  # of one launch, which are counted in int32
NO_PLACE = tl.constexpr(2**30)  # above every column of a tile and every tile of a row


# csrc/common/distance_weighted.h


@triton.jit
def distance_weight(squared, near, D: tl.constexpr):
    """score and root of candidates: the weight is e^score · root."""
    clamped = tl.maximum(squared, near)
    rest = tl.maximum(1.0 - 0.25 * clamped, 1e-30)
    return (0.5 * (2 - D)) * tl.log(clamped * rest), tl.sqrt(rest)


@triton.jit(do_not_specialize=["first", "end", "N", "part_tiles"])
def _sums(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    near: tl.float64, far: tl.float64, largest_out, sums_out, first, end, N, part_tiles,
    SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Largest score, -inf without candidates, and sum of the weights relative to it, by row and column tile."""
    part = tl.program_id(1)
    local = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = first + local
    inside = rows < end
    row_ok, row_scale, row_norms, row_labels, row_ids = _pair.facts(
        x_scale, x_norms, x_labels, x_ids, x_state, rows, inside, HAS_IDS
    )
    tiles = tl.cdiv(N, BLOCK_N)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tiles)):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        col_ok, col_scale, col_norms, col_labels, col_ids = _pair.facts(
            y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS
        )
        candidates = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
        candidates = candidates & (row_labels[:, None] != col_labels[None, :])
        squared = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale,
            row_norms[:, None] + col_norms[None, :], candidates, D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        candidates = candidates & (squared < _pair.scalar(far, DTYPE))
        score, root = distance_weight(tl.where(candidates, squared, 1.0), _pair.scalar(near, DTYPE), D)
        largest = tl.max(tl.where(candidates, score, float("-inf")), 1)
        relative = tl.where(candidates, score - largest[:, None], 0.0)
        at = local * tiles + tile
        tl.store(largest_out + at, largest, mask=inside)
        tl.store(sums_out + at, tl.sum(tl.where(candidates, tl.exp(relative) * root, 0.0), 1), mask=inside)


@triton.jit
def _place_of(weight, up_to, target):
    """Where draws (R,) fall among weights (R, B) that follow a sum up_to (R,), all float64.

    The first weight with which the sum exceeds the target, or else the last that is not 0, or -1; the sum before it;
    whether the target was exceeded.
    """
    place = tl.arange(0, weight.shape[1])[None, :]
    sums = up_to[:, None] + tl.cumsum(weight, 1)
    some = weight > 0.0
    first = tl.min(tl.where(some & (sums > target[:, None]), place, NO_PLACE), 1)
    last = tl.max(tl.where(some, place, -1), 1)
    found = first < NO_PLACE
    at = tl.where(found, first, last)
    return at, tl.sum(tl.where(place == at[:, None], sums - weight, 0.0), 1), found


@triton.jit
def _shares(largest, sums, local, start, inside, top, tiles, BLOCK_T: tl.constexpr):
    """Weights (R, BLOCK_T), float64, of the column tiles from `start`, relative to the largest score of the row."""
    tile = start + tl.arange(0, BLOCK_T)
    mask = inside[:, None] & (tile < tiles)[None, :]
    at = local[:, None] * tiles + tile[None, :]
    score = tl.load(largest + at, mask=mask, other=float("-inf")).to(tl.float64)
    return tl.load(sums + at, mask=mask, other=0.0).to(tl.float64) * tl.exp(score - top[:, None])


@triton.jit(do_not_specialize=["first", "draws", "samples", "N", "tiles"])
def _draw(
    x, x_scale, x_labels, x_ids, y, y_scale, y_labels, y_ids, y_state, all_nan, uniforms, near: tl.float64,
    far: tl.float64, largest, sums, index_out, first, draws, samples, N, tiles,
    SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Some draws: the weights are computed again in the tile of each of them only, from the rows as they are stored."""
    draw = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = draw < draws
    local = (draw // samples).to(tl.int64)
    rows = first + local
    at = first.to(tl.int64) * samples + draw
    uniform = tl.load(uniforms + at, mask=inside, other=0.0)
    top = tl.full((BLOCK_R,), float("-inf"), DTYPE)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        mask = inside[:, None] & (tile < tiles)[None, :]
        of_tiles = tl.load(largest + local[:, None] * tiles + tile[None, :], mask=mask, other=float("-inf"))
        top = tl.maximum(top, tl.max(of_tiles, 1))
    top = tl.where(tl.load(all_nan) == 0, top, float("-inf"))
    some = inside & (top > float("-inf")) & (uniform >= 0.0) & (uniform < 1.0)
    top = tl.where(some, top, 0.0).to(tl.float64)
    total = tl.zeros((BLOCK_R,), tl.float64)
    for start in range(0, tiles, BLOCK_T):
        total += tl.sum(_shares(largest, sums, local, start, some, top, tiles, BLOCK_T), 1)
    target = uniform * total
    chosen, before = tl.full((BLOCK_R,), 0, tl.int32), tl.zeros((BLOCK_R,), tl.float64)
    up_to, done = tl.zeros((BLOCK_R,), tl.float64), tl.zeros((BLOCK_R,), tl.int32)
    for start in range(0, tiles, BLOCK_T):
        weight = _shares(largest, sums, local, start, some, top, tiles, BLOCK_T)
        place, lower, found = _place_of(weight, up_to, target)
        take = (done == 0) & (place >= 0)
        chosen = tl.where(take, start + place, chosen)
        before = tl.where(take, lower, before)
        done = done | found.to(tl.int32)
        up_to += tl.sum(weight, 1)
    of_tile = tl.load(largest + local * tiles + chosen, mask=some, other=0.0)
    rest = (target - before) * tl.exp(tl.minimum(top - of_tile.to(tl.float64), 700.0))

    cols = chosen[:, None].to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    there = some[:, None] & (cols < N)
    negatives = there & (tl.load(y_state + cols, mask=there, other=0) == KEPT)
    of_row = tl.load(x_labels + rows, mask=some, other=0)
    negatives = negatives & (tl.load(y_labels + cols, mask=there, other=0) != of_row[:, None])
    if SELF:
        negatives = negatives & (cols != rows[:, None])
    if HAS_IDS:
        own = tl.load(x_ids + rows, mask=some, other=0)
        negatives = negatives & (tl.load(y_ids + cols, mask=there, other=0) != own[:, None])
    row_scale = tl.load(x_scale + rows, mask=some, other=0.0)
    col_scale = tl.load(y_scale + cols, mask=negatives, other=0.0)
    squared = tl.zeros((BLOCK_R, BLOCK_N), DTYPE)
    for k in range(0, D, BLOCK_K):
        features = k + tl.arange(0, BLOCK_K)
        mask = some[:, None] & (features < D)[None, :]
        f = tl.load(x + rows[:, None] * D + features[None, :], mask=mask, other=0.0).to(DTYPE) * row_scale[:, None]
        mask = negatives[:, :, None] & (features < D)[None, None, :]
        g = tl.load(y + cols[:, :, None] * D + features[None, None, :], mask=mask, other=0.0).to(DTYPE)
        delta = f[:, None, :] - g * col_scale[:, :, None]
        squared += tl.sum(delta * delta, 2)
    candidates = negatives & (squared < _pair.scalar(far, DTYPE))
    score, root = distance_weight(tl.where(candidates, squared, 1.0), _pair.scalar(near, DTYPE), D)
    relative = tl.where(candidates, score - of_tile[:, None], 0.0)
    weight = tl.where(candidates, tl.exp(relative) * root, 0.0).to(tl.float64)
    column, lower, found = _place_of(weight, tl.zeros((BLOCK_R,), tl.float64), rest)
    # Where the one candidate of the tile is so near the cutoff that it is none by this rounding, it is the nearest.
    key = tl.where(negatives, squared, float("inf"))
    nearest = tl.min(tl.where(key == tl.min(key, 1)[:, None], tl.arange(0, BLOCK_N)[None, :], NO_PLACE), 1)
    column = tl.where(column >= 0, column, nearest)
    index = chosen.to(tl.int64) * BLOCK_N + column
    tl.store(index_out + at, tl.where(some, index, -1), mask=inside)


def _draw_blocks(width: int, block_n: int) -> dict[str, int]:
    if _configs.INTERPRETED:
        return {"BLOCK_R": 64, "BLOCK_T": 16, "BLOCK_K": _configs.power_of_two(width, 16, 64), "num_warps": 1}
    # About 32 numbers of the gallery rows to a thread.
    return {"BLOCK_R": max(1, 128 // block_n), "BLOCK_T": 32, "BLOCK_K": 32, "num_warps": 4}


def forward(*, uniforms: Tensor, cutoff: float, nonzero_loss_cutoff: float, precision: str, **given: Any) -> Tensor:
    p = _problem.of("distance_weighted", given | {"precision": precision})
    (m, samples), n = uniforms.shape, p.gallery.count
    index = torch.empty(m, samples, dtype=torch.int64, device=uniforms.device)
    if _problem.empty(p) or samples == 0:
        return index.fill_(-1)
    config = _configs.choose("distance_weighted_fwd", p.q.operand.dtype, p.queries.width, p.q.x.device)
    tiles = triton.cdiv(n, config.block_n)
    fitting = SUMS_BYTES // (2 * tiles * p.q.scale.element_size()) // config.block_m
    countable = MOST_DRAWS // samples // config.block_m
    rows = min(m, max(min(fitting, countable), 1) * config.block_m)
    largest, sums = p.q.scale.new_empty(2, rows, tiles)
    row_tiles = triton.cdiv(rows, config.block_m)
    parts = _configs.parts(row_tiles, tiles)
    # Squares as the kernels compare them; the smallest has a logarithm in float32.
    limits = (max(cutoff**2, 1e-37), nonzero_loss_cutoff**2)
    constants = p.constants()
    blocks = _draw_blocks(p.queries.width, config.block_n)
    q, g, u = p.q, p.g, uniforms.contiguous()
    for first in range(0, m, rows):
        count = min(rows, m - first)
        launch(_sums, (triton.cdiv(count, config.block_m), parts))(
            *q, *g, *limits, largest, sums, first, first + count, n, triton.cdiv(tiles, parts),
            PRECISION=_configs.dot_precision(precision), **constants, **config.tile(),
        )  # fmt: skip
        launch(_draw, (triton.cdiv(count * samples, blocks["BLOCK_R"]),))(
            q.x, q.scale, q.labels, q.ids, g.x, g.scale, g.labels, g.ids, g.state, p.all_nan, u, *limits,
            largest, sums, index, first, count * samples, samples, n, tiles,
            **constants, BLOCK_N=config.block_n, **blocks,
        )  # fmt: skip
    return index


OPERATORS = {"distance_weighted_fwd": forward}
