"""soft_triple: sums over tiles of embeddings and whole classes of centers; their similarities are never stored.

The K centers of a class take a power of two of a tile's columns, so that a class is an axis of the reshaped tile. A
tile's product is recomputed in the backward, once for each chunk of columns of the gradient, and the other side is
split where there are few rows; what the programs of a split find is summed in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlkernels._contract import MAX_CENTERS_PER_CLASS

from . import _configs, _pair, _rows
from ._launch import launch

SPLITS = 16  # of the classes in the forward, at most
NO_LOGIT = tl.constexpr(-3e38)  # below every logit, and finite


@triton.jit
def _similarities(
    x_ptr,
    center_ptr,
    x_scale_ptr,
    center_scale_ptr,
    m,
    first_class,
    M,
    C,
    inverse_gamma,
    D: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Of embeddings m and a block of classes: the centers' rows and which are there, both (CLASSES * PADDED_K,), their
    softmax and how far they are above the similarity of the class, both (rows, CLASSES, PADDED_K), and that similarity,
    (rows, CLASSES).
    """
    column = tl.arange(0, CLASSES * PADDED_K)
    label, k = first_class + column // PADDED_K, column % PADDED_K
    center, there = label.to(tl.int64) * K + k, (label < C) & (k < K)
    s = _pair.tile_product(x_ptr, center_ptr, m, center, m < M, there, D, PRECISION, T, BLOCK_K)
    s = s * tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[:, None]
    s = s * tl.load(center_scale_ptr + center, mask=there, other=0.0)[None, :]
    s = tl.reshape(s, (m.shape[0], CLASSES, PADDED_K))
    counts = (tl.arange(0, PADDED_K) < K)[None, None, :]
    top = tl.max(tl.where(counts, s, float("-inf")), 2)
    under = tl.where(counts, s - tl.expand_dims(top, 2), 0.0)
    weight = tl.where(counts, tl.exp(inverse_gamma * under), 0.0)
    total = tl.sum(weight, 2)
    below = tl.sum(weight * under, 2) / total
    return center, there, weight / tl.expand_dims(total, 2), under - tl.expand_dims(below, 2), top + below


@triton.jit(do_not_specialize=["M", "C"])
def _logits(
    x_ptr,  # (M, D) operand
    label_ptr,  # (M,)
    center_ptr,  # (C*K, D) operand
    x_scale_ptr,  # (M,)
    center_scale_ptr,  # (C*K,)
    part_ptr,  # (3, splits, M): sum of e^(logit - maximum) over the other classes, maximum, logit of the own class
    M,
    C,
    la: tl.float64,
    inverse_gamma: tl.float64,
    margin: tl.float64,
    D: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split, splits = tl.program_id(1), tl.num_programs(1)
    la, margin, inverse_gamma = _pair.scalar(la, T), _pair.scalar(margin, T), _pair.scalar(inverse_gamma, T)
    m = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    label = tl.load(label_ptr + m, mask=m < M, other=-1)[:, None]
    total, top, own_logit = tl.zeros((SIDE,), T), tl.full((SIDE,), NO_LOGIT, T), tl.zeros((SIDE,), T)
    for start in range(split * CLASSES, C, splits * CLASSES):
        _, _, _, _, similarity = _similarities(
            *(x_ptr, center_ptr, x_scale_ptr, center_scale_ptr, m, start, M, C, inverse_gamma),
            *(D, T, K, PADDED_K, CLASSES, PRECISION, BLOCK_K),
        )
        classes = (start + tl.arange(0, CLASSES))[None, :]
        own = label == classes
        logit = la * tl.where(own, similarity - margin, similarity)
        others = tl.where((classes < C) & (own == 0), logit, float("-inf"))
        new_top = tl.maximum(top, tl.max(others, 1))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(others - new_top[:, None]), 1)
        top = new_top
        own_logit += tl.sum(tl.where(own, logit, 0.0), 1)
    at, row = part_ptr + split.to(tl.int64) * M + m, splits.to(tl.int64) * M
    tl.store(at, total, mask=m < M)
    tl.store(at + row, top, mask=m < M)
    tl.store(at + 2 * row, own_logit, mask=m < M)


@triton.jit(do_not_specialize=["M", "C", "splits"])
def _merge(
    part_ptr, label_ptr, state_ptr, lost_ptr, loss_ptr, stats_ptr, M, C, splits, T: tl.constexpr, BLOCK: tl.constexpr
):
    """loss (M,) and row_stats (2, M) from the parts; NaN for a row that is not finite or has no class, or if lost."""
    m = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = M.to(tl.int64) * splits
    total, top, own = tl.zeros((BLOCK,), T), tl.full((BLOCK,), NO_LOGIT, T), tl.zeros((BLOCK,), T)
    for split in range(splits):
        at = part_ptr + split * M.to(tl.int64) + m
        other_top = tl.load(at + row, mask=m < M, other=0.0)
        new_top = tl.maximum(top, other_top)
        total = total * tl.exp(top - new_top) + tl.load(at, mask=m < M, other=0.0) * tl.exp(other_top - new_top)
        top = new_top
        own += tl.load(at + 2 * row, mask=m < M, other=0.0)
    margin = tl.where(total > 0.0, tl.log(tl.where(total > 0.0, total, 1.0)) + top - own, float("-inf"))
    small = tl.exp(-tl.abs(margin))
    loss = tl.maximum(margin, 0.0) + _pair.log_one_plus(small)
    label = tl.load(label_ptr + m, mask=m < M, other=0)
    good = (tl.load(state_ptr + m, mask=m < M, other=0) == _pair.KEPT) & (label >= 0) & (label < C)
    good = good & (tl.load(lost_ptr) == 0)
    tl.store(loss_ptr + m, tl.where(good, loss, float("nan")), mask=m < M)
    tl.store(stats_ptr + m, tl.where(good, own + loss, float("nan")), mask=m < M)
    miss = tl.where(margin > 0.0, 1.0, small) / (1.0 + small)
    tl.store(stats_ptr + M + m, tl.where(good, miss, float("nan")), mask=m < M)


@triton.jit(do_not_specialize=["M", "C"])
def _backward(
    x_ptr,  # (M, D) operand
    x_row_ptr,  # (M, D) as it was given
    label_ptr,  # (M,)
    center_ptr,  # (C*K, D) operand
    center_row_ptr,  # (C*K, D) as it was given
    x_scale_ptr,  # (M,)
    center_scale_ptr,  # (C*K,)
    stats_ptr,  # (2, M)
    grad_ptr,  # (M,) incoming gradient
    out_ptr,  # (splits, C*K or M, D)
    M,
    C,
    la: tl.float64,
    inverse_gamma: tl.float64,
    OF_CENTERS: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    CLASSES: tl.constexpr,
    PRECISION: tl.constexpr,
    WEIGHT_PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    split, splits = tl.program_id(2), tl.num_programs(2)
    la, inverse_gamma = _pair.scalar(la, T), _pair.scalar(inverse_gamma, T)
    chunk = tl.program_id(1) * CHUNK
    COLUMNS: tl.constexpr = CLASSES * PADDED_K
    if OF_CENTERS:
        grad = tl.zeros((COLUMNS, CHUNK), T)
        stop, step = M, SIDE
    else:
        grad = tl.zeros((SIDE, CHUNK), T)
        stop, step = C, CLASSES
    for start in range(split * step, stop, splits * step):
        first_class = tl.program_id(0) * CLASSES if OF_CENTERS else start
        first_row = start if OF_CENTERS else tl.program_id(0) * SIDE
        m = tl.arange(0, SIDE).to(tl.int64) + first_row
        center, there, share, above, similarity = _similarities(
            *(x_ptr, center_ptr, x_scale_ptr, center_scale_ptr, m, first_class, M, C, inverse_gamma),
            *(D, T, K, PADDED_K, CLASSES, PRECISION, BLOCK_K),
        )
        own = tl.load(label_ptr + m, mask=m < M, other=-1)[:, None] == (first_class + tl.arange(0, CLASSES))[None, :]
        log_sum = tl.load(stats_ptr + m, mask=m < M, other=0.0)[:, None]
        miss = tl.load(stats_ptr + M + m, mask=m < M, other=0.0)[:, None]
        scale = la * tl.load(grad_ptr + m, mask=m < M, other=0.0)[:, None]
        slope = scale * tl.where(own, -miss, tl.exp(la * similarity - log_sum))
        weight = tl.expand_dims(slope, 2) * share * (1.0 + inverse_gamma * above)
        weight = tl.reshape(weight, (SIDE, COLUMNS))
        # Weights leave the range and the precision of half numbers; float32 holds those exactly.
        if OF_CENTERS:
            weight = weight * tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[:, None]
            weight = tl.trans(tl.where((m < M)[:, None], weight, 0.0))
            rows = _pair.load_rows(x_row_ptr, m, m < M, chunk, D, CHUNK).to(T)
        else:
            weight = weight * tl.load(center_scale_ptr + center, mask=there, other=0.0)[None, :]
            weight = tl.where(there[None, :], weight, 0.0)
            rows = _pair.load_rows(center_row_ptr, center, there, chunk, D, CHUNK).to(T)
        grad = _pair.dot(weight, rows, grad, WEIGHT_PRECISION)
    if OF_CENTERS:
        column = tl.arange(0, COLUMNS)
        label, k = tl.program_id(0) * CLASSES + column // PADDED_K, column % PADDED_K
        row, there, count = label.to(tl.int64) * K + k, (label < C) & (k < K), C.to(tl.int64) * K
    else:
        row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
        there, count = row < M, M.to(tl.int64)
    k = (chunk + tl.arange(0, CHUNK))[None, :]
    tl.store(out_ptr + (split * count + row[:, None]) * D + k, grad, mask=there[:, None] & (k < D))


def _tiles(rows: _rows.Rows, per_class: int, precision: str, backward: bool) -> dict[str, Any]:
    """Constants of both kernels: 64² similarities a tile, of float64 32², with a class that is wider on fewer rows.

    In the backward half the rows: beside the sums, weights of more would spill registers. 8 warps would in the forward
    on sm_100 (bench/report/triton_resources.py).
    """
    operand = rows.operand.dtype
    side = 32 if operand == torch.float64 else 64
    padded = _configs.power_of_two(per_class, 1, MAX_CENTERS_PER_CLASS)
    columns = max(padded, side)
    return {
        "D": rows.width,
        "T": _rows.triton_dtype(operand),
        "K": per_class,
        "PADDED_K": padded,
        "CLASSES": columns // padded,
        "PRECISION": "ieee" if operand == torch.float64 else _configs.dot_precision(precision),
        "SIDE": max(side * side // columns // (2 if backward else 1), 16),
        "BLOCK_K": _configs.power_of_two(rows.width, 16, 64 if operand.itemsize == 2 else 32),
        "num_warps": 8 if backward else 4,
    }


def soft_triple_fwd(
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
    normalize: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """-> loss (M,), row_stats (2, M)."""
    m, classes = len(embeddings), len(centers) // centers_per_class
    x, w, y = *(_rows.prepare(rows, normalize, precision) for rows in (embeddings, centers)), labels.contiguous()
    tiles = _tiles(x, centers_per_class, precision, False)
    blocks = triton.cdiv(classes, tiles["CLASSES"])
    splits = max(1, min(SPLITS, blocks))
    parts = x.scale.new_empty(3, splits, m)
    loss, stats = x.scale.new_empty(m), x.scale.new_empty(2, m)
    if m == 0:
        return loss, stats
    scalars = (la, 1 / gamma, margin)
    launch(_logits, (triton.cdiv(m, tiles["SIDE"]), splits))(
        x.operand, y, w.operand, x.scale, w.scale, parts, m, classes, *scalars, **tiles
    )
    lost = (w.state != _pair.KEPT.value).any()
    block = _configs.row_block()
    launch(_merge, (triton.cdiv(m, block),))(
        *(parts, y, x.state, lost, loss, stats, m, classes, splits), T=tiles["T"], BLOCK=block, num_warps=1
    )
    return loss, stats


def soft_triple_bwd(
    grad_loss: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    centers: Tensor,
    row_stats: Tensor,
    centers_per_class: int,
    la: float,
    gamma: float,
    margin: float,
    normalize: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """-> grad_embeddings (M, D), grad_centers (C*K, D)."""
    (m, d), classes, dtype = embeddings.shape, len(centers) // centers_per_class, _rows.compute_dtype(embeddings.dtype)
    if m == 0 or classes == 0:
        # Embeddings without any class are an error, or on a GPU NaN.
        return torch.full_like(embeddings, torch.nan), torch.zeros_like(centers)
    x, w, y = *(_rows.prepare(rows, normalize, precision) for rows in (embeddings, centers)), labels.contiguous()
    tiles, stats, grad = _tiles(x, centers_per_class, precision, True), row_stats.contiguous(), grad_loss.contiguous()
    bad_centers = (w.state != _pair.KEPT.value).any()
    bad_rows = ((x.state != _pair.KEPT.value) | (y < 0) | (y >= classes)).any()
    weight_precision = "ieee" if dtype == torch.float64 else _configs.dot_precision("ieee")
    grads = []
    row_blocks, class_blocks = triton.cdiv(m, tiles["SIDE"]), triton.cdiv(classes, tiles["CLASSES"])
    columns = tiles["CLASSES"] * tiles["PADDED_K"]
    for rows, blocks, others, side, lost in (
        (x, row_blocks, class_blocks, tiles["SIDE"], bad_centers),
        (w, class_blocks, row_blocks, columns, bad_centers | bad_rows),
    ):
        # Together the parts hold no more than embeddings and centers do; more than a GPU runs at a time gain nothing.
        splits = min(others, (x.count + w.count) // rows.count, _configs.PROGRAMS)
        chunk = _configs.power_of_two(d, 16, min((2048 if dtype == torch.float64 else 8192) // side, 128))
        parts = stats.new_empty(splits, rows.count, d)
        launch(_backward, (blocks, triton.cdiv(d, chunk), splits))(
            *(x.operand, x.x, y, w.operand, w.x, x.scale, w.scale, stats, grad, parts, m, classes, la, 1 / gamma),
            OF_CENTERS=rows is w,
            WEIGHT_PRECISION=weight_precision,
            CHUNK=chunk,
            **tiles,
        )
        sums = _rows.Sums(parts, stats.new_zeros(splits, rows.count))
        grads.append(_rows.finish_gradient(rows, sums, 1.0, normalize, lost))
    return grads[0], grads[1]


OPERATORS = {"soft_triple_fwd": soft_triple_fwd, "soft_triple_bwd": soft_triple_bwd}
