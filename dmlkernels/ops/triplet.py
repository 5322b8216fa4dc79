"""triplet: the triplets of every positive with all or with its semi-hard negatives, none of which are ever listed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import triplet as reference


class Triplets(NamedTuple):
    """Of each anchor (M,); loss_sum is differentiable, float32 (float64 for float64)."""

    loss_sum: Tensor
    nonzero: Tensor  # int64: triplets that cost something
    count: Tensor  # type: ignore[assignment]  # int64: triplets; not tuple.count


def triplets(
    op: str,
    inputs: _checks.PairInputs,
    negative: str,
    margin: float,
    soft: bool = False,
    check_finite: bool = False,
) -> Triplets:
    """What the triplets of each anchor add up to, with all of its positives.

    Args:
        op: the public function, for errors.
        negative: "all", or "semihard": of each positive the one nearest negative that is farther.
    """
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if namespace is None:
        return Triplets(*reference.triplet_rows(inputs, "all", negative, margin, soft, False))
    forward = _library.forward(namespace, "triplet")
    precision, deterministic = _backend.get_float32_precision(), torch.are_deterministic_algorithms_enabled()
    results = forward(*inputs, negative, float(margin), soft, precision, deterministic, check_finite)
    return Triplets(*results[:3])
