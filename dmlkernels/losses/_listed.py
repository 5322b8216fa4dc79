"""Pairs and triplets that a miner lists (`indices_tuple`): gathered rows, memory in the length of the list."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ..reference.pairwise import rows


def listed_distance(left: Tensor, right: Tensor, normalize: bool) -> Tensor:
    """Distance (L,) between the rows of left and right (L, D), in difference form; 0 gradient where they coincide."""
    f, g = rows(left, normalize), rows(right, normalize)
    squared = (f - g).square().sum(1)
    tiny = (4 * torch.finfo(f.dtype).eps) ** 2 * (f.detach().square().sum(1) + g.detach().square().sum(1)) / 2
    apart = squared.detach() > tiny
    return torch.where(apart, torch.where(apart, squared, 1).sqrt(), squared.detach().sqrt())


def _check(op: str, indices_tuple: object, rows: int, columns: int, wait: bool = False) -> tuple[Tensor, ...]:
    """The lists as int64. On a GPU that is not waited for, and in a graph, numbers pass that are of no row."""
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        _checks.fail(
            op, "indices_tuple", "(anchors, positives, negatives) or (a1, positives, a2, negatives)", indices_tuple
        )
    assert isinstance(indices_tuple, (tuple, list))
    whole_numbers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    for listed in indices_tuple:
        if not isinstance(listed, Tensor) or listed.ndim != 1 or listed.dtype not in whole_numbers:
            got = f"{listed.dtype} {tuple(listed.shape)}" if isinstance(listed, Tensor) else type(listed).__name__
            _checks.fail(op, "indices_tuple", "of 1-dimensional integer tensors", got)
    lengths = [len(listed) for listed in indices_tuple]
    if lengths[0] != lengths[1] or lengths[-2] != lengths[-1]:
        _checks.fail(op, "indices_tuple", "of lists as long as those of their anchors", f"lengths {lengths}")
    sizes = (rows, columns, columns) if len(lengths) == 3 else (rows, columns, rows, columns)
    for listed, size in zip(indices_tuple, sizes):
        if torch.compiler.is_compiling() or len(listed) == 0 or not (wait or listed.device.type == "cpu"):
            continue
        low, high = (int(v) for v in listed.aminmax())
        if low < 0 or high >= size:
            _checks.fail(op, "indices_tuple", f"of rows in [0, {size})", low if low < 0 else high)
    return tuple(listed.to(torch.int64) for listed in indices_tuple)


def every_listed_pair(
    op: str, indices_tuple: object, rows: int, columns: int, wait: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1, p, a2, n) as they are listed, of so many rows and of so many in the gallery."""
    listed = _check(op, indices_tuple, rows, columns, wait)
    return listed if len(listed) == 4 else (listed[0], listed[1], listed[0], listed[2])


def listed_pairs(op: str, indices_tuple: object, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1, p, a2, n) as two sets: a pair that several triplets share counts once."""
    # A GPU is waited for anyway, for the length of the sets; a row that is none would name another pair.
    a1, p, a2, n = every_listed_pair(op, indices_tuple, rows, columns, wait=True)
    ends = []
    for anchor, other in ((a1, p), (a2, n)):
        key = torch.unique(anchor * columns + other)
        ends += [torch.div(key, columns, rounding_mode="floor"), key % columns]
    return ends[0], ends[1], ends[2], ends[3]


def listed_triplets(op: str, indices_tuple: object, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a, p, n); from lists of pairs, every positive of an anchor with every negative of it."""
    listed = _check(op, indices_tuple, rows, columns)
    if len(listed) == 3:
        return listed[0], listed[1], listed[2]
    a1, p, a2, n = listed
    order = torch.argsort(a2, stable=True)
    a2, n = a2[order].contiguous(), n[order]
    first = torch.searchsorted(a2, a1.contiguous())
    count = torch.searchsorted(a2, a1.contiguous(), right=True) - first
    pair = torch.repeat_interleave(torch.arange(len(a1), device=a1.device), count)
    start = torch.repeat_interleave(first - count.cumsum(0) + count, count)
    return a1[pair], p[pair], n[start + torch.arange(len(pair), device=a1.device)]
