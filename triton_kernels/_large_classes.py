"""Coding rates of classes of more than 64 rows: the smaller Gram matrix, swept block by block, and the gradient.

The host does not know which classes these are, nor how large: a grid has room for as many as M rows can hold, and a
program whose slot has no such class returns. A class of n rows keeps its min(n, D)² numbers at row `begin` of a
workspace (M, D), where they always fit. Each step of the sweep reads one workspace and writes another, so that kernels
need no barrier but their order; a class is done after its own number of steps, in the workspace of its parity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import _configs, _pair, _sweep
from ._launch import launch

BLOCK = 64  # rows of a block, and of the largest class that is not one of these: coding_rate.SMALL


@triton.jit
def _class_of(begin_ptr, end_ptr, looked_at, M):
    """begin, size of the class of a sorted row."""
    inside = looked_at < M
    begin = tl.load(begin_ptr + looked_at, mask=inside, other=0)
    return begin, (tl.load(end_ptr + looked_at, mask=inside, other=0) - begin).to(tl.int32)


@triton.jit
def _scaled_rows(x_ptr, scale_ptr, order_ptr, place, ok, k, D: tl.constexpr, T: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns k … of f, of the rows at these places of the order."""
    rows = tl.load(order_ptr + place, mask=ok, other=0)
    scale = tl.load(scale_ptr + rows, mask=ok, other=0.0)
    return _pair.load_rows(x_ptr, rows, ok, k, D, COLUMNS).to(T) * scale[:, None]


@triton.jit(do_not_specialize=["M"])
def _gram(
    x_ptr, scale_ptr, order_ptr, begin_ptr, end_ptr, work_ptr, M, gain: tl.float64,
    D: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A row of blocks of I + a f fᵀ where the class has no more rows than columns, of I + a fᵀ f otherwise."""
    looked_at = tl.program_id(0).to(tl.int64) * (BLOCK + 1)
    begin, size = _class_of(begin_ptr, end_ptr, looked_at, M)
    side, across = tl.minimum(size, D), tl.maximum(size, D)
    top = tl.program_id(1) * BLOCK
    if (looked_at - begin > BLOCK) | (size <= BLOCK) | (top >= side):
        return
    a = _pair.scalar(gain, T) / size.to(T)
    work = work_ptr + begin * D
    i, step = top + tl.arange(0, BLOCK), tl.arange(0, STEP)
    for left in range(0, side, BLOCK):
        j = left + tl.arange(0, BLOCK)
        gram = tl.zeros((BLOCK, BLOCK), T)
        if size <= D:
            for k in range(0, across, STEP):
                f = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + i, i < size, k, D, T, STEP)
                g = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + j, j < size, k, D, T, STEP)
                gram = _pair.dot(f, tl.trans(g), gram, PRECISION)
        else:
            for k in range(0, across, STEP):
                f = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + k + step, k + step < size, top, D, T, BLOCK)
                g = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + k + step, k + step < size, left, D, T, BLOCK)
                gram = _pair.dot(tl.trans(f), g, gram, PRECISION)
        gram = a * gram + tl.where(i[:, None] == j[None, :], 1.0, 0.0).to(T)
        inside = (i < side)[:, None] & (j < side)[None, :]
        tl.store(work + i[:, None].to(tl.int64) * side + j[None, :], gram, mask=inside)


@triton.jit(do_not_specialize=["M", "step"])
def _pivots(
    begin_ptr, end_ptr, from_ptr, to_ptr, rate_ptr, M, step, D: tl.constexpr, T: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The block of pivots of this step, swept, and its log det in the rate."""
    looked_at = tl.program_id(0).to(tl.int64) * (BLOCK + 1)
    begin, size = _class_of(begin_ptr, end_ptr, looked_at, M)
    side, pivots = tl.minimum(size, D), step * BLOCK
    if (looked_at - begin > BLOCK) | (size <= BLOCK) | (pivots >= side):
        return
    p = pivots + tl.arange(0, BLOCK)
    block = tl.reshape(_sweep.square(from_ptr + begin * D, p, p, side), (1, BLOCK, BLOCK))
    inverse, logdet = _sweep.sweep(block, tl.minimum(side - pivots, BLOCK))
    tl.store(rate_ptr + begin + step + tl.arange(0, 1), 0.5 * size.to(T) / M.to(T) * logdet)
    inside = (p < side)[:, None] & (p < side)[None, :]
    swept = to_ptr + begin * D + p[:, None].to(tl.int64) * side + p[None, :]
    tl.store(swept, -tl.reshape(inverse, (BLOCK, BLOCK)), mask=inside)


@triton.jit(do_not_specialize=["M", "step"])
def _beside_pivots(
    begin_ptr, end_ptr, from_ptr, to_ptr, M, step,
    D: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Block (i, p) beside the pivots: −A_ip S, with S = −A_pp⁻¹ the swept block."""
    looked_at = tl.program_id(0).to(tl.int64) * (BLOCK + 1)
    begin, size = _class_of(begin_ptr, end_ptr, looked_at, M)
    side, top, pivots = tl.minimum(size, D), tl.program_id(1) * BLOCK, step * BLOCK
    if (looked_at - begin > BLOCK) | (size <= BLOCK) | (top >= side) | (pivots >= side) | (top == pivots):
        return
    source, target = from_ptr + begin * D, to_ptr + begin * D
    i, p = top + tl.arange(0, BLOCK), pivots + tl.arange(0, BLOCK)
    block = tl.zeros((BLOCK, BLOCK), T)
    for u in range(0, BLOCK, STEP):
        q = pivots + u + tl.arange(0, STEP)
        block = _pair.dot(_sweep.square(source, i, q, side), _sweep.square(target, q, p, side), block, PRECISION)
    inside = (i < side)[:, None] & (p < side)[None, :]
    tl.store(target + i[:, None].to(tl.int64) * side + p[None, :], -block, mask=inside)


@triton.jit(do_not_specialize=["M", "step"])
def _others(
    begin_ptr, end_ptr, from_ptr, to_ptr, M, step,
    D: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """A row of all other blocks: A_ij, or 0 in the row of the pivots, less the new block (i, p) times A_pj."""
    looked_at = tl.program_id(0).to(tl.int64) * (BLOCK + 1)
    begin, size = _class_of(begin_ptr, end_ptr, looked_at, M)
    side, top, pivots = tl.minimum(size, D), tl.program_id(1) * BLOCK, step * BLOCK
    if (looked_at - begin > BLOCK) | (size <= BLOCK) | (top >= side) | (pivots >= side):
        return
    source, target = from_ptr + begin * D, to_ptr + begin * D
    i = top + tl.arange(0, BLOCK)
    for start in range(0, side, BLOCK):
        if start != pivots:
            j = start + tl.arange(0, BLOCK)
            change = tl.zeros((BLOCK, BLOCK), T)
            for u in range(0, BLOCK, STEP):
                q = pivots + u + tl.arange(0, STEP)
                change = _pair.dot(
                    _sweep.square(target, i, q, side), _sweep.square(source, q, j, side), change, PRECISION
                )
            block = tl.where(top == pivots, 0.0, _sweep.square(source, i, j, side)) - change
            inside = (i < side)[:, None] & (j < side)[None, :]
            tl.store(target + i[:, None].to(tl.int64) * side + j[None, :], block, mask=inside)


@triton.jit(do_not_specialize=["M"])
def _gradient(
    x_ptr, scale_ptr, order_ptr, begin_ptr, end_ptr, even_ptr, odd_ptr, grad_ptr, M, gain: tl.float64,
    D: tl.constexpr, T: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Columns of a A⁻¹ f or a f A⁻¹, of one block of a class's rows; the last program of a class may take two."""
    looked_at = tl.program_id(0).to(tl.int64) * BLOCK
    begin, size = _class_of(begin_ptr, end_ptr, looked_at, M)
    if size <= BLOCK:
        return
    side, chunk = tl.minimum(size, D), tl.program_id(1) * CHUNK
    steps = tl.cdiv(side, BLOCK)
    work = tl.where(steps % 2 == 0, even_ptr, odd_ptr) + begin * D
    a = _pair.scalar(gain, T) / M.to(T)
    first = (looked_at - begin).to(tl.int32) // BLOCK
    last = tl.where(looked_at + BLOCK < begin + size, first + 1, tl.cdiv(size, BLOCK))
    c, inner = chunk + tl.arange(0, CHUNK), tl.arange(0, STEP)
    for block in range(first, last):
        i = block * BLOCK + tl.arange(0, BLOCK)
        grad = tl.zeros((BLOCK, CHUNK), T)
        for u in range(0, side, STEP):
            v = u + inner
            if size <= D:
                left = _sweep.square(work, i, v, side)
                right = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + v, v < size, chunk, D, T, CHUNK)
            else:
                left = _scaled_rows(x_ptr, scale_ptr, order_ptr, begin + i, i < size, u, D, T, STEP)
                right = _sweep.square(work, v, c, side)
            grad = _pair.dot(left, right, grad, PRECISION)
        rows = tl.load(order_ptr + begin + i, mask=i < size, other=0)
        tl.store(grad_ptr + rows[:, None] * D + c[None, :], -a * grad, mask=(i < size)[:, None] & (c < D)[None, :])


def rates_and_gradients(arguments: tuple, constants: dict, slots: int, largest_side: int) -> None:
    """Rates and gradients of the classes of more than 64 rows, into those of `arguments` (see coding_rate._classes)."""
    x, scale, order, begin, end, rates, grad, m, gain = arguments
    # Wider steps and deeper pipelines spill registers where mma.sync takes float32 operands from them (sm_80).
    step = 64 if _configs.INTERPRETED else 16
    constants = {**constants, "BLOCK": BLOCK, "STEP": step, "num_warps": 8, "num_stages": 2}
    need_grad, d = constants.pop("NEED_GRAD"), constants["D"]
    work = torch.empty(2, m, d, dtype=rates.dtype, device=x.device)
    blocks = triton.cdiv(largest_side, BLOCK)
    # Of _others a second stage spills float32 on sm_120, and no second one float64 on sm_80.
    others_stages = 2 if work.dtype == torch.float64 else 1
    launch(_gram, (slots, blocks))(x, scale, order, begin, end, work[0], m, gain, **constants)
    for step in range(blocks):
        spaces = (begin, end, work[step % 2], work[(step + 1) % 2])
        launch(_pivots, (slots,))(*spaces, rates, m, step, D=d, T=constants["T"], BLOCK=BLOCK, num_warps=8)
        launch(_beside_pivots, (slots, blocks))(*spaces, m, step, **constants)
        launch(_others, (slots, blocks))(*spaces, m, step, **{**constants, "num_stages": others_stages})
    if need_grad:
        chunk = _configs.power_of_two(d, 16, 64)
        launch(_gradient, (triton.cdiv(m, BLOCK), triton.cdiv(d, chunk)))(
            *(x, scale, order, begin, end, work[0], work[1], grad, m, gain), **constants, CHUNK=chunk
        )
