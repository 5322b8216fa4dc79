"""Which pairs count: positives, negatives, exclusions and non-finite rows, for every reference of a pair function."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import PairInputs
from .pairwise import rows, squared_norms


class Pairs(NamedTuple):
    f: Tensor  # (M, D) query rows
    g: Tensor  # (N, D) gallery rows; f itself in self mode
    norms: tuple[Tensor, Tensor]  # (M,), (N,): squared norms of both
    positive: Tensor  # (M, N) bool
    negative: Tensor  # (M, N) bool
    bad: Tensor  # (M,) bool: a non-finite row makes this query's result NaN
    gallery_size: Tensor  # (): gallery rows that ignore_index leaves


def pairs(inputs: PairInputs) -> Pairs:
    """Normalised rows and masks. Rows that `ignore_index` names are replaced by zeros and belong to no pair."""
    x, labels, y, ref_labels, ids, ref_ids, ignore_index, normalize = inputs
    self_mode = y is None
    h = labels if ref_labels is None else ref_labels
    kept_x = torch.ones_like(labels, dtype=torch.bool) if ignore_index is None else labels != ignore_index
    kept_y = (
        kept_x if self_mode else (torch.ones_like(h, dtype=torch.bool) if ignore_index is None else h != ignore_index)
    )

    x = torch.where(kept_x[:, None], x, 0)
    y = None if y is None else torch.where(kept_y[:, None], y, 0)
    f = rows(x, normalize)
    g = f if y is None else rows(y, normalize)
    norms = squared_norms(x, normalize), squared_norms(x if y is None else y, normalize)

    allowed = kept_x[:, None] & kept_y[None, :]
    if ids is not None:
        allowed = allowed & (ids[:, None] != (ids if ref_ids is None else ref_ids)[None, :])
    if self_mode:
        allowed = allowed & ~torch.eye(len(labels), dtype=torch.bool, device=x.device)
    same = labels[:, None] == h[None, :]
    bad_x, bad_y = (~of_side.isfinite() for of_side in norms)
    return Pairs(f, g, norms, allowed & same, allowed & ~same, (bad_x | bad_y.any()) & kept_x, kept_y.sum())
