"""pair_loss: the row statistics of every pair loss, by tiles.

Two forms of each pass. By tiles: one program for each tile of the upper triangle (self mode) or of all pairs, which
adds to both ends by atomics. By rows: one program owns its rows, meets every column and uses no atomics, at twice the
products in self mode: what deterministic algorithms, running maxima and small problems take.

Of a similarity the gradient of a row is Σ w g; of a distance it is Σ w (f − g), with the weights pulling at f.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlkernels._contract import TILE

from . import _configs, _pair_loss_backward, _pair_loss_kernels, _problem, _rows
from ._launch import launch
from ._pair_loss import FACTORS, Form
from ._problem import Problem

VALUES = {"similarity": (-1.0, 1.0), "distance": (0.0, 2.0), "squared": (0.0, 4.0)}  # and their range of unit rows
SCORE_RANGE = 64  # csrc/common/pair_loss_arguments.h: half the range of scores from which maxima are running


class Side(NamedTuple):
    term: str
    scale: float
    base: float
    ramp: float
    origin: float
    temperature: float

    def score_range(self, value: str) -> tuple[float, float]:
        """Least and largest score of unit rows."""
        least, most = VALUES[value]
        if self.term == "moment":  # only x > 0 counts
            top = max(0.0, *(self.scale * (v - self.base) for v in (least, most)))
            return min(0.0, self.temperature * top), max(0.0, self.temperature * top)
        if self.term != "exp":
            return 0.0, 0.0
        # With a ramp the score is quadratic, with its extremum halfway between the zeros.
        places = (least, most, self.base, self.origin, (self.base + self.origin) / 2)
        scores = [self._score(v) for v in places if least <= v <= most]
        return min(scores), max(scores)

    def _score(self, v: float) -> float:
        ramp = max(self.ramp * (v - self.origin), 0.0) if self.ramp else 1.0
        return self.scale * ramp * (v - self.base)


class Options(NamedTuple):
    classes: int | None
    value: str
    pos: Side
    neg: Side
    weight_grad: bool
    grad: str
    apart: bool
    precision: str
    deterministic: bool

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        pos, neg = (Side(*(given[f"{side}_{field}"] for field in Side._fields)) for side in ("pos", "neg"))
        return Options(**{name: given[name] for name in Options._fields if name in given}, pos=pos, neg=neg)

    @property
    def query(self) -> bool:
        return self.grad == "query"

    def shifts(self, normalize: bool, gallery: int) -> tuple[float, float] | None:
        """What is subtracted from every score of the positives and of the negatives; None: running maxima."""
        (low, high), (neg_low, neg_high) = self.pos.score_range(self.value), self.neg.score_range(self.value)
        half = max(high - low, neg_high - neg_low) / 2 + math.log(max(gallery, 1))
        if any(side.term in ("exp", "moment") for side in (self.pos, self.neg)) and (
            not normalize or half >= SCORE_RANGE
        ):
            return None
        return (low + high) / 2, (neg_low + neg_high) / 2

    def form(self, p: Problem, bounded: bool, running: bool) -> Form:
        terms = self.pos.term, self.neg.term
        return Form(
            measure=tl.constexpr(self.value),
            pos=tl.constexpr(self.pos.term),
            neg=tl.constexpr(self.neg.term),
            bounded=bounded,
            ramp=any(side.term == "exp" and side.ramp != 0 for side in (self.pos, self.neg)),
            weight_grad=self.weight_grad and "moment" in terms,
            apart=self.apart,
            running=running,
            own=p.own,
            has_ids=p.has_ids,
            width=p.queries.width,
            precision=tl.constexpr(_configs.dot_precision(self.precision)),
            dtype=_rows.triton_dtype(p.q.x.dtype),
            of_distances=self.value != "similarity" or self.apart,
        )


class Call(NamedTuple):
    """What every kernel of it is given."""

    problem: Problem
    options: Options
    bounds: Tensor  # (2, M), or anything where there are none
    form: Form
    shifts: tuple[float, float]  # subtracted from every score of the positives and of the negatives

    @property
    def numbers(self) -> tuple[float, ...]:
        """Those of both sides, in the order in which kernels take them."""
        pos, neg = self.options.pos, self.options.neg
        return *pos[1:], self.shifts[0], *neg[1:], self.shifts[1]

    def passes(self, config: _configs.Config) -> Iterator[dict[str, Any]]:
        """Constants of each launch of a kernel by tiles."""
        yield {"NEARBY": False, "NEAR_SIDE": config.block_m, **config.tile()}
        if self.form.of_distances:
            yield {"NEARBY": True, "NEAR_SIDE": config.block_m, **_configs.of_near_pairs(config).tile()}

    @property
    def state(self) -> tuple[Any, ...]:
        return (self.problem.q, self.problem.g, *self.numbers, self.bounds)


def _prepare(op: str, given: Mapping[str, Any]) -> Call:
    p, o, bounds = _problem.of(op, given), Options.of(given), given["bounds"]
    if o.classes is not None:
        p = p._replace(all_nan=p.all_nan | _outside(p, o.classes))
    shifts = o.shifts(given["normalize"], p.gallery.count)
    form = o.form(p, bounds is not None, running=shifts is None)
    return Call(p, o, p.q.scale if bounds is None else bounds.contiguous(), form, shifts or (0.0, 0.0))


def _outside(p: Problem, classes: int) -> Tensor:
    """() whether a label is in no class; on a GPU, which is not waited for, everything is NaN then."""
    sides = (p.q.labels,) if p.own else (p.q.labels, p.g.labels)
    return torch.cat([(labels < 0) | (labels >= classes) for labels in sides]).any()


def forward(**given: Any) -> tuple[Tensor, ...]:
    call = _prepare("pair_loss", given)
    p, form = call.problem, call.form
    m, n = p.queries.count, p.gallery.count
    like = p.q.scale
    results = tuple(like.new_empty(2, m) for _ in range(5))
    active = torch.zeros(triton.cdiv(m, TILE), triton.cdiv(n, TILE), dtype=torch.uint8, device=like.device)
    if m == 0:
        return *results, active

    by_tiles = p.own and not form.running and _configs.by_tiles(m, n, call.options.deterministic)
    config = _configs.choose("pair_loss_fwd", p.q.operand.dtype, p.queries.width, like.device, square=by_tiles)
    row_tiles, tiles = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)
    parts = 1 if by_tiles else _configs.parts(row_tiles, tiles)
    sums_shape = (2, _pair_loss_kernels.SUMS.value, parts, m)
    sums = (torch.zeros if by_tiles or n == 0 else torch.empty)(sums_shape, dtype=like.dtype, device=like.device)
    if by_tiles:
        near = active.new_zeros(row_tiles, row_tiles)
        for tiles_of in call.passes(config):
            row_tiles = triton.cdiv(m, tiles_of["BLOCK_M"])
            launch(_pair_loss_kernels.forward_tiles, (row_tiles * (row_tiles + 1) // 2,))(
                *call.state, sums, active, near, m, row_tiles, FORM=form, **tiles_of
            )
    elif n > 0:
        launch(_pair_loss_kernels.forward_rows, (row_tiles, parts))(
            *call.state, sums, active, m, n, triton.cdiv(tiles, parts), FORM=form, **config.tile()
        )
    block = _pair_loss_kernels.FINISH_BLOCK
    launch(_pair_loss_kernels.finish_rows, (triton.cdiv(m, block),))(
        sums, p.q.state, p.all_nan, *results, m, parts, *call.shifts,
        POS=form.pos, NEG=form.neg, RUNNING=form.running, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return *results, active


def backward(**given: Any) -> tuple[Tensor, Tensor]:
    call = _prepare("pair_loss_bwd", given)
    p, o, form = call.problem, call.options, call.form
    need_grad_ref, normalize = given["need_grad_ref"], given["normalize"]
    state = (given[name] for name in ("grad_stats", "grad_log_sums", "grad_sums", "stats", "log_sums"))
    m = p.queries.count
    factors = p.q.scale.new_empty(2, FACTORS.value, m)
    if m > 0:
        pos, neg = ((side.scale, side.temperature, shift) for side, shift in zip((o.pos, o.neg), call.shifts))
        launch(_pair_loss_backward.row_factors, (triton.cdiv(m, 128),))(
            *(v.contiguous() for v in state), factors, m, *pos, *neg,
            POS=form.pos, NEG=form.neg, RUNNING=form.running, RAMP=form.ramp, WEIGHT_GRAD=form.weight_grad,
            BLOCK=128, num_warps=4,
        )  # fmt: skip
    sums_q, sums_g = _weighted_sums(call, factors, given["tile_active"].contiguous(), need_grad_ref)
    sign = 1.0 if o.value == "similarity" else -1.0
    grad_emb = _rows.finish_gradient(p.queries, sums_q, sign, normalize, p.all_nan)
    if not need_grad_ref:
        return grad_emb, grad_emb.new_empty(0, p.queries.width)
    return grad_emb, _rows.finish_gradient(p.gallery, sums_g, sign, normalize, p.all_nan)


def _weighted_sums(call: Call, factors: Tensor, active: Tensor, need_grad_ref: bool) -> tuple[_rows.Sums, _rows.Sums]:
    """Sums of weighted rows for the queries and for the gallery (the same ones in self mode) from all active tiles."""
    p, o = call.problem, call.options
    q, g = p.queries, p.gallery
    by_tiles = _problem.empty(p) or q.width == 0 or _configs.by_tiles(q.count, g.count, o.deterministic)
    config = _configs.choose("pair_loss_bwd", p.q.operand.dtype, q.width, q.x.device, square=by_tiles)
    to_gallery = need_grad_ref and not o.query
    common = {
        "ROUNDING": _configs.rounding(q.operand.dtype, q.x.dtype, o.precision),
        "EPS": torch.finfo(q.scale.dtype).eps,
        "FORM": call.form,
        "BLOCK_D": config.block_d,
    }
    if by_tiles:
        sums_q = _rows.zero_sums(q)
        sums_g = sums_q if p.own or not need_grad_ref else _rows.zero_sums(g)
        if _problem.empty(p) or q.width == 0:
            return sums_q, sums_g
        near = active.new_zeros(triton.cdiv(q.count, config.block_m), triton.cdiv(g.count, config.block_n))
        for tiles_of in call.passes(config):
            row_tiles = triton.cdiv(q.count, tiles_of["BLOCK_M"])
            col_tiles = triton.cdiv(g.count, tiles_of["BLOCK_N"])
            tiles = row_tiles * (row_tiles + 1) // 2 if p.own else row_tiles * col_tiles
            launch(_pair_loss_backward.backward_tiles, (tiles,))(
                *call.state, factors, active, near, *sums_q, *sums_g, q.count, g.count, row_tiles, col_tiles,
                COLUMNS=p.own or to_gallery, QUERY=o.query, **common, **tiles_of,
            )  # fmt: skip
        return sums_q, sums_g

    def by_rows(transposed: bool) -> _rows.Sums:
        """The sums of one side, which owns its rows; with `transposed` it is the gallery."""
        own, other = (g, q) if transposed else (q, g)
        f, g_, *rest = call.state
        grid = (triton.cdiv(own.count, config.block_m), triton.cdiv(own.width, config.block_d))
        tiles = triton.cdiv(other.count, config.block_n)
        parts = _configs.parts(grid[0] * grid[1], tiles)
        sums = _rows.empty_sums(own, parts)
        launch(_pair_loss_backward.backward_rows, (*grid, parts))(
            *((g_, f) if transposed else (f, g_)), *rest, factors, active, *sums, own.count, other.count,
            triton.cdiv(tiles, parts), ROW_END=not transposed, COL_END=transposed or (p.own and not o.query),
            TRANSPOSED=transposed, **common, **config.tile(),
        )  # fmt: skip
        return sums

    sums_q = by_rows(False)
    return sums_q, by_rows(True) if to_gallery else _rows.zero_sums(g) if need_grad_ref else sums_q


OPERATORS = {"pair_loss_fwd": forward, "pair_loss_bwd": backward}
