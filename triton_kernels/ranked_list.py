"""ranked_list: the Ranked List Loss by tiles.

Two forms of each pass. By tiles: one program for each tile of the upper triangle (self mode) or of all pairs, which
adds to both ends by atomics. By rows: one program owns its rows, meets every column and uses no atomics, at twice the
products in self mode: what deterministic algorithms, running maxima and small problems take.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dmlkernels._contract import ROW_STATS, TILE, TOTALS

from . import (
    _arguments,
    _configs,
    _listed,
    _problem,
    _ranked_list_backward,
    _ranked_list_kernels,
    _rows,
    nearest_positive,
)
from ._pair import KEPT
from ._problem import Problem

PML_EPS = 1e-5


class Options(NamedTuple):
    alpha: float
    margin: float
    pos_temperature: float
    neg_temperature: float
    pos_weight: float
    neg_weight: float
    weight_grad: bool
    grad: str
    positive: str
    eps_mode: str
    precision: str
    deterministic: bool

    def check(self, op: str) -> None:
        _arguments.one_of(op, "grad", self.grad, ("full", "query"))
        _arguments.one_of(op, "positive", self.positive, ("all", "easy"))
        _arguments.one_of(op, "eps_mode", self.eps_mode, ("none", "pml"))

    @property
    def pos_boundary(self) -> float:
        return self.alpha - self.margin

    @property
    def easy(self) -> bool:
        return self.positive == "easy"

    def limits(self) -> tuple[float, float]:
        """Squared distances above which a positive and below which a negative is a member; they spare a root."""
        # d > boundary holds for every d >= 0 if the boundary is negative, d < boundary for none if it is not positive.
        pos = -1.0 if self.pos_boundary < 0 else self.pos_boundary**2
        return pos, -1.0 if self.alpha <= 0 else self.alpha**2

    def needs_running_maximum(self, normalize: bool, gallery: int) -> bool:
        """Whether e^(T v) of all gallery rows may add up above e^80: plain sums neither overflow nor vanish below."""
        log_n = math.log(max(gallery, 1))
        negative = abs(self.neg_temperature) * abs(self.alpha)
        positive = abs(self.pos_temperature) * abs(2 - self.alpha + self.margin)
        return not normalize or negative + log_n >= 80 or positive + log_n >= 80

    def constants(self, p: Problem, running: bool) -> dict[str, object]:
        return {
            "RUNNING": running,
            "EASY": self.easy,
            "APART": self.eps_mode == "pml",
            "PRECISION": _configs.dot_precision(self.precision),
            "TILE": TILE,
            **p.constants(),
        }


def forward(**given) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = tuple(given.values())
    *pair, check_finite = arguments
    pair, o = pair[:8], Options(*pair[8:])
    op, normalize = "ranked_list", pair[-1]
    o.check(op)
    p = _problem.prepare(op, pair, o.precision, check_finite)
    m, n = p.queries.count, p.gallery.count
    like = p.q.scale
    loss, row_stats = torch.empty_like(like), like.new_empty(len(ROW_STATS), m)
    easy_index = torch.empty(m if o.easy else 0, dtype=torch.int64, device=like.device)
    active = torch.zeros(triton.cdiv(m, TILE), triton.cdiv(n, TILE), dtype=torch.uint8, device=like.device)
    if m == 0:
        return loss, row_stats, like.new_zeros(len(TOTALS)), easy_index, active

    running = o.needs_running_maximum(normalize, n)
    by_tiles = p.own and not running and _configs.by_tiles(m, o.deterministic)
    config = _configs.choose("ranked_list_fwd", p.q.operand.dtype, p.queries.width, like.device, square=by_tiles)
    row_tiles, tiles = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)
    parts = 1 if by_tiles else _configs.parts(row_tiles, tiles)
    blocks = triton.cdiv(m, _ranked_list_kernels.FINISH_BLOCK)
    sums = (torch.zeros if by_tiles or n == 0 else torch.empty)(6, parts, m, dtype=like.dtype, device=like.device)
    totals = torch.zeros(row_tiles * parts + blocks, len(TOTALS), dtype=torch.float64, device=like.device)
    sets = (o.pos_boundary, o.pos_temperature, o.alpha, o.neg_temperature, *o.limits())
    common = {**o.constants(p, running), **config.tile()}
    if by_tiles:
        _ranked_list_kernels.forward_tiles[(row_tiles * (row_tiles + 1) // 2,)](
            *p.q, *p.g, *sets, sums, totals, active, m, row_tiles, **common
        )
    elif n > 0:
        _ranked_list_kernels.forward_rows[(row_tiles, parts)](
            *p.q, *p.g, *sets, sums, totals, active, m, n, triton.cdiv(tiles, parts), **common
        )
    easy = nearest_positive.choose_positives(p, False, o.precision) if o.easy else (like, p.q.labels)
    kept = (p.g.state == KEPT.value).sum()
    _ranked_list_kernels.finish_rows[(blocks,)](
        sums, *easy, kept, p.q.state, p.all_nan, loss, row_stats, easy_index, totals[row_tiles * parts :], m, parts,
        o.pos_boundary, o.pos_temperature, o.pos_weight, o.neg_weight, PML_EPS,
        EASY=o.easy, APART=o.eps_mode == "pml", DTYPE=_rows.triton_dtype(p.q.x.dtype),
        BLOCK=_ranked_list_kernels.FINISH_BLOCK, num_warps=4,
    )  # fmt: skip
    return loss, row_stats, totals.sum(0).to(like.dtype), easy_index, active


def backward(grad_loss: Tensor, **given) -> tuple[Tensor, Tensor]:
    arguments = tuple(given.values())
    pair, (row_stats, easy_index, active), need_grad_ref = arguments[:8], arguments[8:11], arguments[-1]
    op, normalize, o = "ranked_list_bwd", arguments[7], Options(*arguments[11:-1])
    o.check(op)
    p = _problem.prepare(op, pair, o.precision)
    _check_backward(op, p, o, grad_loss, row_stats, easy_index, active, need_grad_ref)
    running = o.needs_running_maximum(normalize, p.gallery.count)
    both_ends = o.grad == "full" and (p.own or need_grad_ref)
    factors = p.q.scale.new_empty(6, p.queries.count)
    if factors.numel() > 0:
        _ranked_list_kernels.gradient_factors[(triton.cdiv(p.queries.count, 128),)](
            grad_loss.contiguous(), row_stats.contiguous(), p.q.state, factors, p.queries.count, o.pos_weight,
            o.neg_weight, RUNNING=running, DTYPE=_rows.triton_dtype(p.q.x.dtype), BLOCK=128, num_warps=4,
        )  # fmt: skip
    sums_q, sums_g = _dense_sums(p, o, factors, active.contiguous(), running, both_ends, need_grad_ref)
    if o.easy:
        weight = _easy_weights(p, o, easy_index, grad_loss, row_stats)
        _listed.add_to_queries(sums_q, p.gallery, easy_index.contiguous(), weight)
        if both_ends:
            _listed.add_to_gallery(sums_g, p.queries, easy_index.contiguous(), weight)
    grad_emb = _rows.finish_gradient(p.queries, sums_q, -1.0, normalize, p.all_nan)
    if not need_grad_ref:
        return grad_emb, grad_emb.new_empty(0, p.queries.width)
    return grad_emb, _rows.finish_gradient(p.gallery, sums_g, -1.0, normalize, p.all_nan)


def _dense_sums(
    p: Problem, o: Options, factors: Tensor, active: Tensor, running: bool, both_ends: bool, need_grad_ref: bool
) -> tuple[_rows.Sums, _rows.Sums]:
    """Sums of weighted rows for the queries and for the gallery (the same ones in self mode) from all active tiles."""
    q, g = p.queries, p.gallery
    by_tiles = _problem.empty(p) or q.width == 0 or _configs.by_tiles(q.count, o.deterministic)
    config = _configs.choose("ranked_list_bwd", p.q.operand.dtype, q.width, q.x.device, square=by_tiles)
    slopes = (o.pos_temperature, o.neg_temperature) if o.weight_grad else (0.0, 0.0)
    sets = (o.pos_boundary, o.pos_temperature, slopes[0], o.alpha, o.neg_temperature, slopes[1], *o.limits())
    common = {
        "ROUNDING": _configs.rounding(q.operand.dtype, q.x.dtype, o.precision),
        "EPS": torch.finfo(q.scale.dtype).eps,
        "BLOCK_D": config.block_d,
        **o.constants(p, running),
        **config.tile(),
    }
    if by_tiles:
        sums_q = _rows.zero_sums(q)
        sums_g = sums_q if p.own else _rows.zero_sums(g) if need_grad_ref else sums_q
        row_tiles, col_tiles = triton.cdiv(q.count, config.block_m), triton.cdiv(g.count, config.block_n)
        tiles = row_tiles * (row_tiles + 1) // 2 if p.own else row_tiles * col_tiles
        if tiles > 0 and q.width > 0:
            _ranked_list_backward.backward_tiles[(tiles,)](
                *p.q, *p.g, *sets, factors, active, *sums_q, *sums_g, q.count, g.count, row_tiles, col_tiles,
                BOTH_ENDS=both_ends, COLUMNS=p.own or both_ends, **common,
            )  # fmt: skip
        return sums_q, sums_g

    def by_rows(row_end: bool, col_end: bool, transposed: bool = False) -> _rows.Sums:
        """The sums of one side, which owns its rows; with `transposed` it is the gallery."""
        own, other = (g, q) if transposed else (q, g)
        sides = (*p.g, *p.q) if transposed else (*p.q, *p.g)
        grid = (triton.cdiv(own.count, config.block_m), triton.cdiv(own.width, config.block_d))
        tiles = triton.cdiv(other.count, config.block_n)
        parts = _configs.parts(grid[0] * grid[1], tiles)
        sums = _rows.empty_sums(own, parts)
        _ranked_list_backward.backward_rows[(*grid, parts)](
            *sides, *sets, factors, active, *sums, own.count, other.count, triton.cdiv(tiles, parts),
            ROW_END=row_end, COL_END=col_end, TRANSPOSED=transposed, **common,
        )  # fmt: skip
        return sums

    sums_q = by_rows(True, both_ends and p.own)
    if p.own or not need_grad_ref:
        return sums_q, sums_q
    return sums_q, by_rows(False, True, transposed=True) if both_ends else _rows.zero_sums(g)


def _easy_weights(p: Problem, o: Options, easy_index: Tensor, grad_loss: Tensor, row_stats: Tensor) -> Tensor:
    """Weights (M,) of the easy positives: (dL/dd)/d, with p = 1 up to the epsilon of eps_mode."""
    weight = torch.empty_like(p.q.scale)
    if len(weight) > 0:
        squared, norms = _listed.distances(p.queries, p.gallery, easy_index.contiguous())
        _ranked_list_kernels.easy_weights[(triton.cdiv(len(weight), 128),)](
            squared, norms, grad_loss.contiguous(), row_stats.contiguous(), weight, len(weight), o.pos_boundary,
            o.pos_temperature, o.pos_temperature if o.weight_grad else 0.0, o.pos_weight,
            EPS=torch.finfo(weight.dtype).eps, DTYPE=_rows.triton_dtype(p.q.x.dtype), BLOCK=128, num_warps=4,
        )  # fmt: skip
    return weight


def _check_backward(
    op: str,
    p: Problem,
    o: Options,
    grad_loss: Tensor,
    row_stats: Tensor,
    easy_index: Tensor,
    active: Tensor,
    need_grad_ref: bool,
) -> None:
    m, n = p.queries.count, p.gallery.count
    _arguments.per_query(op, "grad_loss", grad_loss, p.q.x)
    if row_stats.shape != (len(ROW_STATS), m) or row_stats.dtype != p.q.scale.dtype:
        _arguments.fail(op, "row_stats", f"(4, {m}) {p.q.scale.dtype}", f"{tuple(row_stats.shape)} {row_stats.dtype}")
    _arguments.rows_of(op, "easy_index", easy_index, m if o.easy else 0, p.g.x)
    if active.shape != (triton.cdiv(m, TILE), triton.cdiv(n, TILE)) or active.dtype != torch.uint8:
        _arguments.fail(
            op, "tile_active", f"(ceil(M/{TILE}), ceil(N/{TILE})) uint8", f"{tuple(active.shape)} {active.dtype}"
        )
    if need_grad_ref and p.own:
        _arguments.fail(op, "need_grad_ref", "false without ref_emb", "true")


OPERATORS = {"ranked_list_fwd": forward, "ranked_list_bwd": backward}
