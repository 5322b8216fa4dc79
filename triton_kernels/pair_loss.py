"""pair_loss: the row statistics of every pair loss, by rows or by tiles as in `ranked_list`.

Of a similarity the gradient of a row is Σ w g; of a distance it is Σ w (f − g), with the weights pulling at f.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from dmlkernels._contract import TILE

from . import _arguments, _configs, _pair_loss_backward, _pair_loss_kernels, _pair_terms, _problem, _rows
from ._problem import Problem

VALUES = {"similarity": (-1.0, 1.0), "distance": (0.0, 2.0), "squared": (0.0, 4.0)}  # and their range of unit rows
SCORE_RANGE = 64  # csrc/common/pair_loss_arguments.h: half the range of scores from which maxima are running


class Side(NamedTuple):
    scale: float
    base: float
    ramp: float
    origin: float

    def score(self, v: float) -> float:
        ramp = max(self.ramp * (v - self.origin), 0.0) if self.ramp else 1.0
        return self.scale * ramp * (v - self.base)

    def score_range(self, value: str) -> tuple[float, float]:
        """Least and largest score of unit rows."""
        least, most = VALUES[value]
        # With a ramp the score is quadratic, with its extremum halfway between the zeros.
        places = (most, self.base, self.origin, (self.base + self.origin) / 2)
        scores = [self.score(v) for v in (least, *places) if least <= v <= most]
        return min(scores), max(scores)


class Options(NamedTuple):
    value: str
    term: str
    sides: str
    pos_scale: float
    pos_base: float
    pos_ramp: float
    pos_origin: float
    neg_scale: float
    neg_base: float
    neg_ramp: float
    neg_origin: float
    precision: str
    deterministic: bool

    def check(self, op: str) -> None:
        _arguments.one_of(op, "value", self.value, tuple(VALUES))
        _arguments.one_of(op, "term", self.term, (*_pair_terms.NAMES, "exp"))
        _arguments.one_of(op, "sides", self.sides, ("both", "positive", "negative"))

    @property
    def numbers(self) -> tuple[float, ...]:
        return self[3:11]

    def shifts(self, normalize: bool, gallery: int) -> tuple[float, float] | None:
        """What is subtracted from every score of the positives and of the negatives; None: running maxima."""
        if self.term != "exp":
            return 0.0, 0.0
        shifts = []
        for name, numbers in (("positive", self.numbers[:4]), ("negative", self.numbers[4:])):
            low, high = Side(*numbers).score_range(self.value) if self.sides in ("both", name) else (0.0, 0.0)
            if not normalize or (high - low) / 2 + math.log(max(gallery, 1)) >= SCORE_RANGE:
                return None
            shifts.append((low + high) / 2)
        return shifts[0], shifts[1]

    def constants(self, p: Problem, bounds: Tensor | None) -> dict[str, object]:
        return {
            "VALUE": self.value,
            "TERM": self.term,
            "SIDES": self.sides,
            "BOUNDED": bounds is not None,
            "RAMP": self.term == "exp" and (self.pos_ramp != 0 or self.neg_ramp != 0),
            "PRECISION": _configs.dot_precision(self.precision),
            "TILE": TILE,
            **p.constants(),
        }


def forward(**named) -> tuple[Tensor, ...]:
    arguments = tuple(named.values())
    *pair, check_finite = arguments
    pair, bounds, o = pair[:8], pair[8], Options(*pair[9:])
    op, normalize = "pair_loss", pair[-1]
    o.check(op)
    p = _problem.prepare(op, pair, o.precision, check_finite)
    m, n = p.queries.count, p.gallery.count
    like = p.q.scale
    bounds = _checked_bounds(op, bounds, like)
    results = tuple(like.new_empty(2, m) for _ in range(4))
    active = torch.zeros(triton.cdiv(m, TILE), triton.cdiv(n, TILE), dtype=torch.uint8, device=like.device)
    if m == 0:
        return *results, active

    shifts = o.shifts(normalize, n)
    # With ids, a tile of the triangle takes more registers than there are.
    by_tiles = p.own and not p.has_ids and shifts is not None and _configs.by_tiles(m, o.deterministic)
    config = _configs.choose("pair_loss_fwd", p.q.operand.dtype, p.queries.width, like.device, square=by_tiles)
    row_tiles, tiles = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)
    parts = 1 if by_tiles else _configs.parts(row_tiles, tiles)
    kept_sums = (2, _pair_loss_kernels.SUMS.value, parts, m)
    sums = (torch.zeros if by_tiles or n == 0 else torch.empty)(kept_sums, dtype=like.dtype, device=like.device)
    running, shifts = shifts is None, shifts or (0.0, 0.0)
    common = {**o.constants(p, bounds), **config.tile()}
    given = (*p.q, *p.g, *o.numbers, *shifts, like if bounds is None else bounds, sums, active, m)
    if by_tiles:
        _pair_loss_kernels.forward_tiles[(row_tiles * (row_tiles + 1) // 2,)](*given, row_tiles, **common)
    elif n > 0:
        part_tiles = triton.cdiv(tiles, parts)
        _pair_loss_kernels.forward_rows[(row_tiles, parts)](*given, n, part_tiles, RUNNING=running, **common)
    _pair_loss_kernels.finish_rows[(triton.cdiv(m, _pair_loss_kernels.FINISH_BLOCK),)](
        sums, p.q.state, p.all_nan, *results, m, parts, *shifts, RUNNING=running, SIDES=o.sides, TERM=o.term,
        BLOCK=_pair_loss_kernels.FINISH_BLOCK, num_warps=4,
    )  # fmt: skip
    return *results, active


def backward(grad_stats: Tensor, grad_sums: Tensor, **named) -> tuple[Tensor, Tensor]:
    arguments = tuple(named.values())
    pair, (stats, active, bounds), need_grad_ref = arguments[:8], arguments[8:11], arguments[-1]
    op, normalize, o = "pair_loss_bwd", arguments[7], Options(*arguments[11:-1])
    o.check(op)
    p = _problem.prepare(op, pair, o.precision)
    bounds = _checked_bounds(op, bounds, p.q.scale)
    state = {"grad_stats": grad_stats, "grad_sums": grad_sums, "stats": stats}
    _check_state(op, p, state, active, need_grad_ref)
    if o.term == "exp":
        # A row that kept no pair keeps none here: e^(score − ∞) = 0, whatever rounding says of a mined pair.
        none = stats == -torch.inf
        state |= {"grad_sums": grad_sums.masked_fill(none, 0), "stats": stats.masked_fill(none, torch.inf)}
    per_row = (p.q.scale if bounds is None else bounds, *(v.contiguous() for v in state.values()))
    sums_q, sums_g = _weighted_sums(p, o, bounds, (*per_row, active.contiguous()), need_grad_ref)
    sign = 1.0 if o.value == "similarity" else -1.0
    grad_emb = _rows.finish_gradient(p.queries, sums_q, sign, normalize, p.all_nan)
    if not need_grad_ref:
        return grad_emb, grad_emb.new_empty(0, p.queries.width)
    return grad_emb, _rows.finish_gradient(p.gallery, sums_g, sign, normalize, p.all_nan)


def _weighted_sums(
    p: Problem, o: Options, bounds: Tensor | None, state: tuple[Tensor, ...], need_grad_ref: bool
) -> tuple[_rows.Sums, _rows.Sums]:
    """Sums of weighted rows for the queries and for the gallery (the same ones in self mode) from all active tiles."""
    q, g = p.queries, p.gallery
    by_tiles = _problem.empty(p) or q.width == 0 or _configs.by_tiles(q.count, o.deterministic)
    config = _configs.choose("pair_loss_bwd", p.q.operand.dtype, q.width, q.x.device, square=by_tiles)
    common = {
        "PULL": o.value != "similarity",
        "ROUNDING": _configs.rounding(q.operand.dtype, q.x.dtype, o.precision),
        "EPS": torch.finfo(q.scale.dtype).eps,
        "BLOCK_D": config.block_d,
        **o.constants(p, bounds),
        **config.tile(),
    }
    if by_tiles:
        sums_q = _rows.zero_sums(q)
        sums_g = sums_q if p.own else _rows.zero_sums(g) if need_grad_ref else sums_q
        row_tiles, col_tiles = triton.cdiv(q.count, config.block_m), triton.cdiv(g.count, config.block_n)
        tiles = row_tiles * (row_tiles + 1) // 2 if p.own else row_tiles * col_tiles
        if tiles > 0 and q.width > 0:
            _pair_loss_backward.backward_tiles[(tiles,)](
                *p.q, *p.g, *o.numbers, *state, *sums_q, *sums_g, q.count, g.count, row_tiles, col_tiles,
                COLUMNS=p.own or need_grad_ref, **common,
            )  # fmt: skip
        return sums_q, sums_g

    def by_rows(transposed: bool) -> _rows.Sums:
        """The sums of one side, which owns its rows; with `transposed` it is the gallery."""
        own, other = (g, q) if transposed else (q, g)
        sides = (*p.g, *p.q) if transposed else (*p.q, *p.g)
        grid = (triton.cdiv(own.count, config.block_m), triton.cdiv(own.width, config.block_d))
        tiles = triton.cdiv(other.count, config.block_n)
        parts = _configs.parts(grid[0] * grid[1], tiles)
        sums = _rows.empty_sums(own, parts)
        _pair_loss_backward.backward_rows[(*grid, parts)](
            *sides, *o.numbers, *state, *sums, own.count, other.count, triton.cdiv(tiles, parts),
            ROW_END=not transposed, COL_END=transposed or p.own, TRANSPOSED=transposed, **common,
        )  # fmt: skip
        return sums

    sums_q = by_rows(False)
    return sums_q, by_rows(True) if need_grad_ref else sums_q


def _checked_bounds(op: str, bounds: Tensor | None, like: Tensor) -> Tensor | None:
    if bounds is not None:
        _of_both_sides(op, "bounds", bounds, like)
        bounds = bounds.contiguous()
    return bounds


def _of_both_sides(op: str, argument: str, v: Tensor, like: Tensor) -> None:
    """(2, M) in the compute dtype."""
    if v.shape != (2, len(like)):
        _arguments.fail(op, argument, "(2, M)", tuple(v.shape))
    if v.dtype != like.dtype:
        _arguments.fail(op, argument, str(like.dtype), v.dtype)


def _check_state(op: str, p: Problem, state: dict[str, Tensor], active: Tensor, need_grad_ref: bool) -> None:
    for name, v in state.items():
        _of_both_sides(op, name, v, p.q.scale)
    tiles = (triton.cdiv(p.queries.count, TILE), triton.cdiv(p.gallery.count, TILE))
    if active.shape != tiles or active.dtype != torch.uint8:
        _arguments.fail(
            op, "tile_active", f"(ceil(M/{TILE}), ceil(N/{TILE})) uint8", f"{tuple(active.shape)} {active.dtype}"
        )
    if need_grad_ref and p.own:
        _arguments.fail(op, "need_grad_ref", "false without ref_emb", "true")


OPERATORS = {"pair_loss_fwd": forward, "pair_loss_bwd": backward}
