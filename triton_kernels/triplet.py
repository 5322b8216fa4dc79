"""triplet: distances of a stripe of anchors at a time, one program an anchor, and products of the weights with rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dmlkernels._contract import TILE

from . import _configs, _problem, _rows, _triplet_kernels, pairwise
from ._launch import launch
from ._pair import KEPT, NON_FINITE
from ._problem import Problem

STRIPE_BYTES = 1 << 26  # of the distances of a stripe of anchors, and as many of the weights


class Options(NamedTuple):
    negative: str
    margin: float
    soft: bool
    precision: str

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        return Options(*(given[name] for name in Options._fields))

    @property
    def semihard(self) -> bool:
        return self.negative == "semihard"

    def tiles(self, rows: int) -> int:
        """Rows or columns of tile_active, which only the triplets with all negatives have."""
        return 0 if self.semihard else triton.cdiv(rows, TILE)

    def constants(self, p: Problem) -> dict[str, object]:
        return {
            "TERM": "softplus" if self.soft else "hinge",
            "DTYPE": _rows.triton_dtype(p.q.x.dtype),
            **_configs.triplet_block(self.semihard),
        }


class Classes(NamedTuple):
    """Where the positives are: the gallery in the order of its labels, and each anchor's class in it."""

    order: Tensor
    begin: Tensor
    end: Tensor

    @staticmethod
    def of(p: Problem) -> Classes:
        labels, order = torch.sort(p.g.labels, stable=True)
        own = p.q.labels
        return Classes(order, torch.searchsorted(labels, own), torch.searchsorted(labels, own, right=True))


class Stripe(NamedTuple):
    first: int
    rows: int
    values: Tensor  # (count, N) distances


def _stripes(p: Problem, o: Options, active: Tensor, only_active: bool) -> Iterator[Stripe]:
    m, n = p.queries.count, p.gallery.count
    config = _configs.choose("triplet_fwd", p.q.operand.dtype, p.queries.width, p.q.x.device)
    rows = min(m, max(STRIPE_BYTES // (n * p.q.scale.element_size()) // TILE, 1) * TILE)
    values = p.q.scale.new_empty(rows, n)
    for first in range(0, m, rows):
        count = min(rows, m - first)
        launch(_triplet_kernels.distances, (triton.cdiv(count, config.block_m) * triton.cdiv(n, config.block_n),))(
            *p.q, *p.g, active, values, m, n, first,
            ONLY_ACTIVE=only_active and not o.semihard, PRECISION=_configs.dot_precision(o.precision), TILE=TILE,
            **p.constants(), **config.tile(),
        )  # fmt: skip
        yield Stripe(first, count, values)


def forward(**given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    o, p = Options.of(given), _problem.of("triplet", given)
    m, n = p.queries.count, p.gallery.count
    loss_sum = torch.zeros_like(p.q.scale)
    nonzero, count = (torch.zeros_like(p.q.labels) for _ in range(2))
    active = torch.zeros(o.tiles(m), o.tiles(n), dtype=torch.uint8, device=loss_sum.device)
    if not _problem.empty(p):
        classes = Classes.of(p)
        for stripe in _stripes(p, o, active, False):
            results = (loss_sum, nonzero, count, n, stripe.first, o.margin)
            if o.semihard:
                launch(_triplet_kernels.semihard_sums, (stripe.rows,))(
                    stripe.values, *_contest(p), *classes, *results, **_share(p), **o.constants(p)
                )
            else:
                launch(_triplet_kernels.sums, (stripe.rows,))(
                    stripe.values, p.q.labels, p.g.labels, *classes, active, *results, TILE=TILE, **o.constants(p)
                )
    spoilt = (p.q.state == NON_FINITE.value) | ((p.q.state == KEPT.value) & p.all_nan)
    loss_sum = torch.where(spoilt, torch.nan, loss_sum)
    return loss_sum, nonzero.masked_fill(spoilt, 0), count.masked_fill(spoilt, 0), active


def _contest(p: Problem) -> tuple[Tensor, ...]:
    """What tells two semi-hard candidates apart, of both sides, with the labels."""
    return p.q.x, p.q.scale, p.q.norms, p.q.labels, p.g.x, p.g.scale, p.g.norms, p.g.labels


def _share(p: Problem) -> dict[str, object]:
    return {"SHARE": _rows.tie_share(p.q.x.dtype, p.queries.width), "D": p.queries.width}


def _without_bad_rows(rows: _rows.Rows) -> _rows.Rows:
    """Rows that no pair has as zeros, since 0 times one that is not finite is NaN."""
    kept = rows.state == KEPT.value
    return dataclasses.replace(
        rows, operand=torch.where(kept[:, None], rows.operand, 0), scale=torch.where(kept, rows.scale, 1)
    )


def _part(rows: _rows.Rows, first: int, count: int) -> _rows.Rows:
    return _rows.Rows(*(getattr(rows, f.name)[first : first + count] for f in dataclasses.fields(rows)))


def backward(*, grad_loss_sum: Tensor, tile_active: Tensor, need_grad_ref: bool, **given: Any) -> tuple[Tensor, Tensor]:
    o, p, normalize = Options.of(given), _problem.of("triplet_bwd", given), given["normalize"]
    queries = _without_bad_rows(p.queries)
    gallery = queries if p.own else _without_bad_rows(p.gallery)
    sums_q = _rows.zero_sums(p.queries)
    sums_g = sums_q if p.own else _rows.zero_sums(p.gallery) if need_grad_ref else None
    if not _problem.empty(p):
        classes = Classes.of(p)
        incoming, n = grad_loss_sum.contiguous(), p.gallery.count
        for stripe in _stripes(p, o, tile_active.contiguous(), True):
            weights = p.q.scale.new_empty(stripe.rows, n)
            results = (*classes, incoming, weights, n, stripe.first, o.margin)
            constants = {"EPS": torch.finfo(weights.dtype).eps, **o.constants(p)}
            if o.semihard:
                launch(_triplet_kernels.semihard_weights, (stripe.rows,))(
                    stripe.values, *_contest(p), *results, **_share(p), **constants
                )
            else:
                launch(_triplet_kernels.weights, (stripe.rows,))(
                    stripe.values, p.q.labels, p.q.norms, p.g.labels, p.g.norms, *results, **constants
                )
            anchors = slice(stripe.first, stripe.first + stripe.rows)
            own = _part(queries, stripe.first, stripe.rows)
            _add(sums_q, anchors, pairwise.weighted_sums(own, gallery, weights, "squared", o.precision))
            if sums_g is not None:
                added = pairwise.weighted_sums(gallery, own, weights, "squared", o.precision, transposed=True)
                _add(sums_g, slice(None), added)
    grad_emb = _rows.finish_gradient(p.queries, sums_q, -1.0, normalize, p.all_nan)
    if p.own or sums_g is None:
        return grad_emb, grad_emb.new_empty(0, p.queries.width)
    return grad_emb, _rows.finish_gradient(p.gallery, sums_g, -1.0, normalize, p.all_nan)


def _add(total: _rows.Sums, rows: slice, added: _rows.Sums | None) -> None:
    if added is not None:
        total.rows[0, rows] += added.rows.sum(0)
        total.weights[0, rows] += added.weights.sum(0)


OPERATORS = {"triplet_fwd": forward, "triplet_bwd": backward}
