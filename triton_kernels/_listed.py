"""Pairs given by a list, row i with row to[i]: their distances, and their share of a gradient, without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _pair, _rows
from ._configs import power_of_two, row_block
from ._launch import launch
from ._pair import KEPT


@triton.jit(do_not_specialize=["M", "N"])
def _distances(
    x, x_scale, x_state, y, y_scale, y_state, to, squared_out, norms_out, M, N,
    D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < M
    other = tl.load(to + rows, mask=inside, other=-1)
    ok = inside & (other >= 0) & (other < N)
    ok = ok & (tl.load(x_state + rows, mask=ok, other=0) == KEPT)
    ok = ok & (tl.load(y_state + other, mask=ok, other=0) == KEPT)
    row_scale = tl.load(x_scale + rows, mask=ok, other=0.0)
    other_scale = tl.load(y_scale + other, mask=ok, other=0.0)
    squared = tl.zeros((BLOCK_M,), DTYPE)
    norms = tl.zeros((BLOCK_M,), DTYPE)
    for k in range(0, D, BLOCK_K):
        f = _pair.load_rows(x, rows, ok, k, D, BLOCK_K).to(DTYPE) * row_scale[:, None]
        g = _pair.load_rows(y, other, ok, k, D, BLOCK_K).to(DTYPE) * other_scale[:, None]
        squared += tl.sum((f - g) * (f - g), 1)
        norms += tl.sum(f * f + g * g, 1)
    tl.store(squared_out + rows, squared, mask=inside)
    tl.store(norms_out + rows, norms, mask=inside)


def distances(queries: _rows.Rows, gallery: _rows.Rows, to: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (M,) of rows i and to[i], in difference form, and sums of their squared norms; 0 for none."""
    squared, norms = torch.empty_like(queries.scale), torch.empty_like(queries.scale)
    m, block_m = queries.count, row_block()
    if m > 0:
        launch(_distances, (triton.cdiv(m, block_m),))(
            queries.x, queries.scale, queries.state, gallery.x, gallery.scale, gallery.state, to, squared, norms, m,
            gallery.count, D=queries.width, DTYPE=_rows.triton_dtype(queries.x.dtype), BLOCK_M=block_m,
            BLOCK_K=power_of_two(queries.width, 16, 32), num_warps=4,
        )  # fmt: skip
    return squared, norms


def distance_weights(queries: _rows.Rows, gallery: _rows.Rows, to: Tensor, grad: Tensor) -> Tensor:
    """Gradient of listed distances as weights (M,) of (f_i - g_to): grad / d, 0 for coincident points."""
    squared, norms = distances(queries, gallery, to)
    eps = torch.finfo(squared.dtype).eps
    return torch.where(squared > norms * (8 * eps * eps), grad / squared.sqrt(), 0)


@triton.jit(do_not_specialize=["M"])
def _add(
    y, y_scale, other, weight, begin, end, sums, weights, M,
    D: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Row r gains the rows other[e] with weight[e], e from begin[r] to end[r], in that order."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_column = tl.program_id(1) * BLOCK_D
    inside = rows < M
    first = tl.load(begin + rows, mask=inside, other=0)
    last = tl.load(end + rows, mask=inside, other=0)
    features = first_column + tl.arange(0, BLOCK_D)
    at = rows[:, None] * D + features[None, :]
    mask = inside[:, None] & (features < D)[None, :]
    acc = tl.load(sums + at, mask=mask, other=0.0)
    total = tl.load(weights + rows, mask=inside, other=0.0)
    for step in range(tl.max(last - first, 0)):
        e = first + step
        within = e < last
        w = tl.load(weight + e, mask=within, other=0.0)
        o = tl.load(other + e, mask=within, other=0)
        # An entry without a weight may be of no row at all.
        ok = within & (w != 0.0)
        scale = tl.load(y_scale + o, mask=ok, other=0.0)
        acc += (w * scale)[:, None] * _pair.load_rows(y, o, ok, first_column, D, BLOCK_D).to(DTYPE)
        total += w
    tl.store(sums + at, acc, mask=mask)
    if first_column == 0:
        tl.store(weights + rows, total, mask=inside)


def _add_all(sums: _rows.Sums, others: _rows.Rows, other: Tensor, weight: Tensor, begin: Tensor, end: Tensor) -> None:
    m, d = sums.rows.shape[-2:]
    block_m, block_d = row_block(), power_of_two(d, 16, 128)
    if m > 0 and d > 0:
        launch(_add, (triton.cdiv(m, block_m), triton.cdiv(d, block_d)))(
            others.x, others.scale, other, weight, begin, end, sums.rows, sums.weights, m, D=d,
            DTYPE=_rows.triton_dtype(others.x.dtype), BLOCK_M=block_m, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip


def add_to_queries(sums: _rows.Sums, gallery: _rows.Rows, to: Tensor, weight: Tensor) -> None:
    """weight[i] (f_i - g_to) adds to row i of the sums, which are those of `finish_gradient`, of one part, sign -1."""
    own = torch.arange(len(to) + 1, device=to.device)
    _add_all(sums, gallery, to, weight, own[:-1], own[1:])


def add_to_gallery(sums: _rows.Sums, queries: _rows.Rows, to: Tensor, weight: Tensor) -> None:
    """The other end: row to[i] gains weight[i] (g_to - f_i), from its queries in their order."""
    chosen, order = torch.sort(to, stable=True)
    rows = torch.arange(sums.weights.shape[-1], device=to.device)
    begin, end = torch.searchsorted(chosen, rows), torch.searchsorted(chosen, rows, right=True)
    _add_all(sums, queries, order, weight[order], begin, end)
