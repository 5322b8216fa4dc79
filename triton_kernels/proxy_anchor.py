"""proxy_anchor: sums over tiles of proxies and embeddings; the matrix of their similarities is never stored.

A tile's product is recomputed in the backward, once for each chunk of columns of the gradient. Few rows are shared out
to more programs by splitting the other side; what the programs of a split find is summed in a fixed order, so that the
result is deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmlkernels import _checks

from . import _arguments, _configs, _pair, _rows

SPLITS = 16  # of the embeddings in the forward, at most
NO_MAXIMUM = tl.constexpr(-1e30)


@triton.jit
def _score(similarity, alpha, margin, positive):
    return tl.where(positive, -alpha * (similarity - margin), alpha * (similarity + margin))


@triton.jit
def _add(total, top, scores, members):
    """Running sum of e^score and its exponent, over axis 1 of the members."""
    scores = tl.where(members, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    return total * tl.exp(top - new_top) + tl.sum(tl.exp(scores - new_top[:, None]), 1), new_top


@triton.jit(do_not_specialize=["M", "C"])
def _forward(
    x_ptr,  # (M, D) operand
    label_ptr,  # (M,)
    proxy_ptr,  # (C, D) operand
    x_scale_ptr,  # (M,)
    proxy_scale_ptr,  # (C,)
    part_ptr,  # (4, splits, C): sum and maximum of the positives, then of the negatives
    M,
    C,
    alpha: tl.float64,
    margin: tl.float64,
    D: tl.constexpr,
    T: tl.constexpr,
    PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split, splits = tl.program_id(1), tl.num_programs(1)
    alpha, margin = _pair.scalar(alpha, T), _pair.scalar(margin, T)
    c = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    c_scale = tl.load(proxy_scale_ptr + c, mask=c < C, other=0.0)
    pos, neg = tl.zeros((SIDE,), T), tl.zeros((SIDE,), T)
    pos_top, neg_top = tl.full((SIDE,), NO_MAXIMUM, T), tl.full((SIDE,), NO_MAXIMUM, T)
    for start in range(split * SIDE, M, splits * SIDE):
        m = tl.arange(0, SIDE).to(tl.int64) + start
        s = _pair.tile_product(proxy_ptr, x_ptr, c, m, c < C, m < M, D, PRECISION, T, BLOCK_K)
        s = s * c_scale[:, None] * tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[None, :]
        own = c[:, None] == tl.load(label_ptr + m, mask=m < M, other=-1)[None, :]
        scores, inside = _score(s, alpha, margin, own), (m < M)[None, :]
        pos, pos_top = _add(pos, pos_top, scores, own & inside)
        neg, neg_top = _add(neg, neg_top, scores, (own == 0) & inside)
    at, row = part_ptr + split.to(tl.int64) * C + c, splits.to(tl.int64) * C
    tl.store(at, pos, mask=c < C)
    tl.store(at + row, pos_top, mask=c < C)
    tl.store(at + 2 * row, neg, mask=c < C)
    tl.store(at + 3 * row, neg_top, mask=c < C)


@triton.jit
def _log_one_plus(part_ptr, row, c, C, splits):
    """log(1 + sum e^maximum) of the merged splits."""
    top = tl.full(c.shape, NO_MAXIMUM, part_ptr.dtype.element_ty)
    total = tl.zeros(c.shape, part_ptr.dtype.element_ty)
    for split in range(splits):
        other = tl.load(part_ptr + split * C + c, mask=c < C, other=0.0)
        other_top = tl.load(part_ptr + row + split * C + c, mask=c < C, other=0.0)
        new_top = tl.maximum(top, other_top)
        total = total * tl.exp(top - new_top) + other * tl.exp(other_top - new_top)
        top = new_top
    log_sum = tl.log(tl.where(total > 0.0, total, 1.0)) + top
    value = tl.maximum(log_sum, 0.0) + _pair.log_one_plus(tl.exp(-tl.abs(log_sum)))
    return tl.where(total > 0.0, value, 0.0)


@triton.jit(do_not_specialize=["C", "splits"])
def _merge(part_ptr, stats_ptr, C, splits, SIDE: tl.constexpr):
    c = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    row = C.to(tl.int64) * splits
    tl.store(stats_ptr + c, _log_one_plus(part_ptr, row, c, C, splits), mask=c < C)
    tl.store(stats_ptr + C + c, _log_one_plus(part_ptr + 2 * row, row, c, C, splits), mask=c < C)


@triton.jit(do_not_specialize=["A", "B"])
def _backward(
    a_ptr,  # (A, D) operand of the rows whose gradient this is: proxies if OF_PROXIES, embeddings otherwise
    b_ptr,  # (B, D) operand of the others
    b_row_ptr,  # (B, D) the others as they were given
    a_scale_ptr,  # (A,)
    b_scale_ptr,  # (B,)
    label_ptr,  # (number of embeddings,)
    stats_ptr,  # (2, number of proxies)
    share_ptr,  # (2,) incoming gradient over the number of proxies in each term
    out_ptr,  # (splits, A, D)
    A,
    B,
    alpha: tl.float64,
    margin: tl.float64,
    OF_PROXIES: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    PRECISION: tl.constexpr,
    WEIGHT_PRECISION: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    split, splits = tl.program_id(2), tl.num_programs(2)
    alpha, margin = _pair.scalar(alpha, T), _pair.scalar(margin, T)
    a = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    chunk = tl.program_id(1) * CHUNK
    a_scale = tl.load(a_scale_ptr + a, mask=a < A, other=0.0)[:, None]
    pos_share, neg_share = tl.load(share_ptr), tl.load(share_ptr + 1)
    grad = tl.zeros((SIDE, CHUNK), T)
    for start in range(split * SIDE, B, splits * SIDE):
        b = tl.arange(0, SIDE).to(tl.int64) + start
        b_scale = tl.load(b_scale_ptr + b, mask=b < B, other=0.0)[None, :]
        s = _pair.tile_product(a_ptr, b_ptr, a, b, a < A, b < B, D, PRECISION, T, BLOCK_K) * a_scale * b_scale
        if OF_PROXIES:
            own = a[:, None] == tl.load(label_ptr + b, mask=b < B, other=-1)[None, :]
            pos_sum = tl.load(stats_ptr + a, mask=a < A, other=0.0)[:, None]
            neg_sum = tl.load(stats_ptr + A + a, mask=a < A, other=0.0)[:, None]
        else:
            own = tl.load(label_ptr + a, mask=a < A, other=-1)[:, None] == b[None, :]
            pos_sum = tl.load(stats_ptr + b, mask=b < B, other=0.0)[None, :]
            neg_sum = tl.load(stats_ptr + B + b, mask=b < B, other=0.0)[None, :]
        slope = tl.where(own, -alpha * pos_share, alpha * neg_share)
        weight = slope * tl.exp(_score(s, alpha, margin, own) - tl.where(own, pos_sum, neg_sum)) * b_scale
        weight = tl.where((a < A)[:, None] & (b < B)[None, :], weight, 0.0)
        # Weights leave the range and the precision of half numbers; float32 holds those exactly.
        rows = _pair.load_rows(b_row_ptr, b, b < B, chunk, D, CHUNK).to(T)
        grad = _pair.dot(weight, rows, grad, WEIGHT_PRECISION)
    k = (chunk + tl.arange(0, CHUNK))[None, :]
    tl.store(out_ptr + (split * A.to(tl.int64) + a[:, None]) * D + k, grad, mask=(a < A)[:, None] & (k < D))


def _check(op: str, embeddings: Tensor, labels: Tensor, proxies: Tensor) -> None:
    _arguments.matrix(op, "embeddings", embeddings)
    _arguments.like(op, "proxies", proxies, embeddings)
    _arguments.vector(op, "labels", labels, len(embeddings), torch.int64)
    try:
        _checks.class_labels(op, labels, len(proxies))
    except ValueError as error:
        # Like the other backends' operators, from inside a graph too.
        raise RuntimeError(str(error)) from None


def _proxies_with_positives(labels: Tensor, classes: int) -> Tensor:
    """(), at least 1."""
    seen = torch.zeros(classes, dtype=torch.bool, device=labels.device)
    return seen.index_fill(0, labels.clamp(0, classes - 1), True).sum().clamp_min(1)


def _bad(x: _rows.Rows, p: _rows.Rows) -> Tensor:
    """() whether a norm is not finite."""
    return (torch.cat([x.state, p.state]) != _pair.KEPT.value).any()


def _tiles(rows: _rows.Rows, precision: str) -> dict[str, Any]:
    """Constants of both kernels. With 4 warps the sums and weights of a tile of 64² leave registers for too little."""
    operand = rows.operand.dtype
    return {
        "D": rows.width,
        "T": _rows.triton_dtype(operand),
        "PRECISION": "ieee" if operand == torch.float64 else _configs.dot_precision(precision),
        "SIDE": 32 if operand == torch.float64 else 64,
        "BLOCK_K": _configs.power_of_two(rows.width, 16, 64 if operand.itemsize == 2 else 32),
        "num_warps": 8,
    }


def proxy_anchor_fwd(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    margin: float,
    alpha: float,
    normalize: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """-> loss (), proxy_stats (2, C)."""
    _check("proxy_anchor_loss", embeddings, labels, proxies)
    m, c, dtype = len(embeddings), len(proxies), _rows.compute_dtype(embeddings.dtype)
    stats = torch.zeros(2, c, dtype=dtype, device=proxies.device)
    if m == 0 or c == 0:
        return stats.new_zeros(()), stats
    x, p, y = *(_rows.prepare(rows, normalize, precision) for rows in (embeddings, proxies)), labels.contiguous()
    tiles = _tiles(x, precision)
    side = tiles["SIDE"]
    blocks, splits = triton.cdiv(c, side), min(SPLITS, triton.cdiv(m, side))
    parts = stats.new_empty(4, splits, c)
    _forward[(blocks, splits)](x.operand, y, p.operand, x.scale, p.scale, parts, m, c, alpha, margin, **tiles)
    _merge[(blocks,)](parts, stats, c, splits, SIDE=side, num_warps=1)
    pos, neg = stats.sum(1, dtype=torch.float64)
    lost = _bad(x, p) | ((y < 0) | (y >= c)).any()
    return torch.where(lost, torch.nan, pos / _proxies_with_positives(y, c) + neg / c).to(dtype), stats


def proxy_anchor_bwd(
    grad_loss: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    proxy_stats: Tensor,
    margin: float,
    alpha: float,
    normalize: bool,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """-> grad_embeddings (M, D), grad_proxies (C, D)."""
    op = "proxy_anchor_bwd"
    _check(op, embeddings, labels, proxies)
    (m, d), c, dtype = embeddings.shape, len(proxies), _rows.compute_dtype(embeddings.dtype)
    for name, value, shape in (("grad_loss", grad_loss, ()), ("proxy_stats", proxy_stats, (2, c))):
        if tuple(value.shape) != shape or value.dtype != dtype:
            _arguments.fail(op, name, f"{shape} {dtype}", f"{tuple(value.shape)} {value.dtype}")
    if m == 0 or c == 0:
        return torch.zeros_like(embeddings), torch.zeros_like(proxies)
    x, p, y = *(_rows.prepare(rows, normalize, precision) for rows in (embeddings, proxies)), labels.contiguous()
    shares = torch.stack([grad_loss / _proxies_with_positives(y, c), grad_loss / c])
    tiles, stats, lost = _tiles(x, precision), proxy_stats.contiguous(), _bad(x, p)
    side, chunk = tiles["SIDE"], _configs.power_of_two(d, 16, 2 * tiles["SIDE"])
    weight_precision = "ieee" if dtype == torch.float64 else _configs.dot_precision("ieee")
    grads = []
    for of_proxies, a, b in ((False, x, p), (True, p, x)):
        # Together the parts hold no more than embeddings and proxies do.
        splits = min(triton.cdiv(b.count, side), (m + c) // a.count)
        parts = stats.new_empty(splits, a.count, d)
        _backward[(triton.cdiv(a.count, side), triton.cdiv(d, chunk), splits)](
            *(a.operand, b.operand, b.x, a.scale, b.scale, y, stats, shares, parts, a.count, b.count, alpha, margin),
            OF_PROXIES=of_proxies,
            WEIGHT_PRECISION=weight_precision,
            CHUNK=chunk,
            **tiles,
        )
        sums = _rows.Sums(parts, stats.new_zeros(splits, a.count))
        grads.append(_rows.finish_gradient(a, sums, 1.0, normalize, lost))
    return grads[0], grads[1]


OPERATORS = {"proxy_anchor_fwd": proxy_anchor_fwd, "proxy_anchor_bwd": proxy_anchor_bwd}
