"""nearest_positive and mine: positives by sorted classes, negatives by tiles, ties to the lowest row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _listed, _pair, _problem, _rows
from ._launch import launch
from ._pair import IGNORED, KEPT, NO_INDEX
from ._problem import Problem


@triton.jit(do_not_specialize=["M"])
def _positives(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    row_order, col_order, begin, end, best_out, index_out, M,
    FARTHEST: tl.constexpr, SHARE: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sorted rows of one tile meet the sorted gallery rows of their own classes only."""
    tile = tl.program_id(0)
    at = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = at < M
    rows = tl.load(row_order + at, mask=inside, other=0)
    row_ok, row_scale, row_norms, row_labels, row_ids = _pair.facts(
        x_scale, x_norms, x_labels, x_ids, x_state, rows, inside, HAS_IDS
    )
    best = tl.full((BLOCK_M,), float("inf"), DTYPE)
    best_index = tl.full((BLOCK_M,), NO_INDEX, tl.int64)
    first = tl.load(begin + tile)
    last = tl.load(end + tile)
    # A class that ignore_index takes out may be large.
    last = tl.where(tl.max(row_ok.to(tl.int32), 0) > 0, last, first)
    for start in range(first, last, BLOCK_N):
        place = start + tl.arange(0, BLOCK_N)
        cols = tl.load(col_order + place, mask=place < last, other=0)
        col_ok, col_scale, col_norms, col_labels, col_ids = _pair.facts(
            y_scale, y_norms, y_labels, y_ids, y_state, cols, place < last, HAS_IDS
        )
        candidates = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
        candidates = candidates & (row_labels[:, None] == col_labels[None, :])
        norms = row_norms[:, None] + col_norms[None, :]
        squared = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, candidates,
            D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        best, best_index = _pair.offer(
            best, best_index, squared, norms, candidates, cols, x, y, y_scale, y_norms, rows, row_scale, row_norms,
            FARTHEST, SHARE, D, DTYPE,
        )  # fmt: skip
    found = best_index < NO_INDEX
    squared = -best if FARTHEST else best
    tl.store(best_out + rows, tl.where(found, squared, float("inf")), mask=inside)
    tl.store(index_out + rows, best_index, mask=inside)


@triton.jit(do_not_specialize=["M", "N", "part_tiles"])
def _negatives(
    x, x_operand, x_scale, x_norms, x_labels, x_ids, x_state, y, y_operand, y_scale, y_norms, y_labels, y_ids, y_state,
    beyond, beyond_index, best_out, index_out, M, N, part_tiles,
    SEMIHARD: tl.constexpr, SHARE: tl.constexpr, SELF: tl.constexpr, HAS_IDS: tl.constexpr, D: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Nearest negatives of one tile of rows in one part of the gallery."""
    part = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < M
    row_ok, row_scale, row_norms, row_labels, row_ids = _pair.facts(
        x_scale, x_norms, x_labels, x_ids, x_state, rows, inside, HAS_IDS
    )
    best = tl.full((BLOCK_M,), float("inf"), DTYPE)
    best_index = tl.full((BLOCK_M,), NO_INDEX, tl.int64)
    if SEMIHARD:
        limit = tl.load(beyond + rows, mask=inside, other=0.0)
        limit_index = tl.load(beyond_index + rows, mask=inside, other=NO_INDEX)
    for tile in range(part * part_tiles, tl.minimum((part + 1) * part_tiles, tl.cdiv(N, BLOCK_N))):
        cols = (tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        col_ok, col_scale, col_norms, col_labels, col_ids = _pair.facts(
            y_scale, y_norms, y_labels, y_ids, y_state, cols, cols < N, HAS_IDS
        )
        candidates = _pair.allowed(rows, cols, row_ok, col_ok, row_ids, col_ids, SELF, HAS_IDS)
        candidates = candidates & (row_labels[:, None] != col_labels[None, :])
        norms = row_norms[:, None] + col_norms[None, :]
        squared = _pair.squared_distances(
            x, x_operand, y, y_operand, rows, cols, row_ok, col_ok, row_scale, col_scale, norms, candidates,
            D, PRECISION, DTYPE, BLOCK_K,
        )  # fmt: skip
        if SEMIHARD:
            candidates = _pair.beyond_positive(
                squared, limit, limit_index, best, norms, candidates, cols, x, y, y_scale, y_norms,
                rows, row_scale, row_norms, SHARE, D, DTYPE,
            )  # fmt: skip
        best, best_index = _pair.offer(
            best, best_index, squared, norms, candidates, cols, x, y, y_scale, y_norms, rows, row_scale, row_norms,
            False, SHARE, D, DTYPE,
        )  # fmt: skip
    at = part * M.to(tl.int64) + rows
    tl.store(best_out + at, best, mask=inside)
    tl.store(index_out + at, best_index, mask=inside)


@triton.jit(do_not_specialize=["M", "parts"])
def _finish(
    best, index, x, x_scale, x_norms, state, y, y_scale, y_norms, all_nan, distance_out, index_out, M, parts,
    SHARE: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Distance and row of the best of all parts."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < M
    squared = tl.full((BLOCK,), float("inf"), DTYPE)
    winner = tl.full((BLOCK,), NO_INDEX, tl.int64)
    scale = tl.load(x_scale + rows, mask=inside, other=0.0)
    norms = tl.load(x_norms + rows, mask=inside, other=0.0)
    for part in range(parts):
        at = part * M.to(tl.int64) + rows
        other = tl.load(best + at, mask=inside, other=float("inf"))
        other_index = tl.load(index + at, mask=inside, other=NO_INDEX)
        # Of one part, which the farthest come in, all win.
        squared, winner = _pair.duel(
            squared, winner, other, other_index, x, y, y_scale, y_norms, rows, scale, norms, False, SHARE, D, DTYPE
        )
    kind = tl.load(state + rows, mask=inside, other=0)
    spoilt = (kind != IGNORED) & ((kind != KEPT) | (tl.load(all_nan) != 0))
    found = (winner < NO_INDEX) & (kind == KEPT) & (tl.load(all_nan) == 0)
    distance = tl.where(found, tl.sqrt(tl.where(found, squared, 0.0)), float("inf"))
    tl.store(distance_out + rows, tl.where(spoilt, float("nan"), distance), mask=inside)
    tl.store(index_out + rows, tl.where(found, winner, -1), mask=inside)


def _share(p: Problem) -> float:
    return _rows.tie_share(p.q.x.dtype, p.queries.width)


def choose_positives(p: Problem, farthest: bool, precision: str) -> tuple[Tensor, Tensor]:
    """Squared distance (M,), +inf for none, and gallery row (M,), NO_INDEX for none, of each query's positive."""
    m = p.queries.count
    squared = torch.empty_like(p.q.scale)
    index = torch.empty(m, dtype=torch.int64, device=squared.device)
    if _problem.empty(p):
        return squared.fill_(torch.inf), index.fill_(NO_INDEX.value)
    labels, order = torch.sort(p.q.labels, stable=True)
    ref_labels, ref_order = (labels, order) if p.own else torch.sort(p.g.labels, stable=True)
    config = _configs.choose("positives", p.q.operand.dtype, p.queries.width, squared.device)
    tiles = triton.cdiv(m, config.block_m)
    first = torch.arange(tiles, device=squared.device) * config.block_m
    begin = torch.searchsorted(ref_labels, labels[first])
    end = torch.searchsorted(ref_labels, labels[(first + config.block_m - 1).clamp_max(m - 1)], right=True)
    launch(_positives, (tiles,))(
        *p.q, *p.g, order, ref_order, begin, end, squared, index, m,
        FARTHEST=farthest, SHARE=_share(p), PRECISION=_configs.dot_precision(precision), **p.constants(),
        **config.tile(),
    )  # fmt: skip
    return squared, index


def choose_negatives(p: Problem, beyond: tuple[Tensor, Tensor] | None, precision: str) -> tuple[Tensor, Tensor]:
    """Likewise (parts, M) of the nearest negatives, beyond the chosen positives if they are given."""
    m, n = p.queries.count, p.gallery.count
    config = _configs.choose("negatives", p.q.operand.dtype, p.queries.width, p.q.x.device)
    row_tiles, tiles = triton.cdiv(m, config.block_m), triton.cdiv(n, config.block_n)
    parts = _configs.parts(row_tiles, tiles)
    squared = p.q.scale.new_empty(parts, m)
    index = torch.empty(parts, m, dtype=torch.int64, device=squared.device)
    if _problem.empty(p):
        return squared.fill_(torch.inf), index.fill_(NO_INDEX.value)
    launch(_negatives, (row_tiles, parts))(
        *p.q, *p.g, *((p.q.norms, p.q.labels) if beyond is None else beyond), squared, index, m, n,
        triton.cdiv(tiles, parts), SEMIHARD=beyond is not None, SHARE=_share(p),
        PRECISION=_configs.dot_precision(precision), **p.constants(), **config.tile(),
    )  # fmt: skip
    return squared, index


def _selection(p: Problem, squared: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """distance (M,) and index (M,) as the operators return them."""
    m = p.queries.count
    distance, row = torch.empty_like(p.q.scale), torch.empty(m, dtype=torch.int64, device=squared.device)
    if m > 0:
        launch(_finish, (triton.cdiv(m, 128),))(
            squared, index, p.q.x, p.q.scale, p.q.norms, p.q.state, p.g.x, p.g.scale, p.g.norms, p.all_nan, distance,
            row, m, squared.numel() // m,
            SHARE=_share(p), D=p.queries.width, DTYPE=_rows.triton_dtype(p.q.x.dtype), BLOCK=128, num_warps=4,
        )  # fmt: skip
    return distance, row


def nearest_forward(**given) -> tuple[Tensor, Tensor]:
    p = _problem.of("nearest_positive", given)
    return _selection(p, *choose_positives(p, False, given["precision"]))


def mine_forward(*, positive: str, negative: str, precision: str, **given) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p = _problem.of("mine", given | {"precision": precision})
    squared, index = choose_positives(p, positive == "hard", precision)
    # Nothing is farther than the positive that a row does not have: it is at +inf.
    found = choose_negatives(p, (squared, index) if negative == "semihard" else None, precision)
    return *_selection(p, squared, index), *_selection(p, *found)


def nearest_backward(
    grad_distance: Tensor,
    embeddings: Tensor,
    ref_emb: Tensor | None,
    index: Tensor,
    normalize: bool,
    need_grad_ref: bool,
) -> tuple[Tensor, Tensor]:
    return _backward([(index, grad_distance)], embeddings, ref_emb, normalize, need_grad_ref)


def mine_backward(
    grad_pos: Tensor,
    grad_neg: Tensor,
    embeddings: Tensor,
    ref_emb: Tensor | None,
    pos_index: Tensor,
    neg_index: Tensor,
    normalize: bool,
    need_grad_ref: bool,
) -> tuple[Tensor, Tensor]:
    lists = [(pos_index, grad_pos), (neg_index, grad_neg)]
    return _backward(lists, embeddings, ref_emb, normalize, need_grad_ref)


def _backward(
    lists: list[tuple[Tensor, Tensor]],
    embeddings: Tensor,
    ref_emb: Tensor | None,
    normalize: bool,
    need_grad_ref: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of listed distances. Rows that are not finite chose nobody, and nobody chose them: theirs is 0."""
    queries = _rows.prepare(embeddings, normalize, "ieee")
    gallery = queries if ref_emb is None else _rows.prepare(ref_emb, normalize, "ieee")
    sums_q = _rows.zero_sums(queries)
    sums_g = sums_q if ref_emb is None else _rows.zero_sums(gallery) if need_grad_ref else None
    for index, grad in lists:
        to = index.contiguous()
        weight = _listed.distance_weights(queries, gallery, to, grad)
        _listed.add_to_queries(sums_q, gallery, to, weight)
        if sums_g is not None:
            _listed.add_to_gallery(sums_g, queries, to, weight)
    grad_emb = _rows.finish_gradient(queries, sums_q, -1.0, normalize, nan_rows=False)
    if sums_g is None or ref_emb is None:
        return grad_emb, embeddings.new_empty(0, embeddings.shape[1])
    return grad_emb, _rows.finish_gradient(gallery, sums_g, -1.0, normalize, nan_rows=False)


OPERATORS = {
    "nearest_positive_fwd": nearest_forward,
    "nearest_positive_bwd": nearest_backward,
    "mine_fwd": mine_forward,
    "mine_bwd": mine_backward,
}
