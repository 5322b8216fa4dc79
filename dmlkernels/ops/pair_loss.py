"""pair_loss: the row statistics of every pair loss, streamed over tiles of pairs that are never stored.

A loss of the family is a few lines of PyTorch on (M,) statistics; autograd takes their gradients back here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import pair_loss as reference
from ..reference.pairwise import compute_dtype


class Side(NamedTuple):
    """One side of the pairs: x = scale · (value − base), or − the bound of the query."""

    scale: float
    base: float = 0.0
    ramp: float = 0.0  # "exp": 0, or a factor [ramp · (value − origin)]₊ that is a constant of the gradient
    origin: float = 0.0


class Options(NamedTuple):
    """What is summed up; see `reference.pair_loss`."""

    value: str  # similarity | distance | squared
    term: str  # exp | hinge | softplus
    pos: Side | None  # None: the side does not take part
    neg: Side | None

    def arguments(self) -> tuple[Any, ...]:
        """As the operator takes them."""
        sides = "both" if self.pos and self.neg else "positive" if self.pos else "negative"
        nothing = Side(0.0)
        numbers = (float(v) for v in (*(self.pos or nothing), *(self.neg or nothing)))
        return self.value, self.term, sides, *numbers


class Statistics(NamedTuple):
    """Of each query (M,), float32 (float64 for float64): pos and neg are differentiable, and so are their sums."""

    pos: Tensor  # log-sum-exp (−inf of none), or sum of the term
    neg: Tensor
    pos_sum: Tensor  # sum of the values that take part
    neg_sum: Tensor
    pos_members: Tensor  # how many positives there are
    neg_members: Tensor
    pos_slope: Tensor  # "exp": how many are kept; else the sum of the term's derivative by x ("hinge": how many cost)
    neg_slope: Tensor


def _bounds_gradient(known: Mapping[str, Any]) -> Tensor | None:
    """(2, M): x falls by scale where a bound rises by 1; those of "exp" mine, and have no gradient."""
    if known["term"] == "exp":
        return None
    by_side = (-known[scale] * grad for scale, grad in zip(("pos_scale", "neg_scale"), known["grad_stats"]))
    return (torch.stack(tuple(by_side)) * known["slopes"]).to(known["bounds"].dtype)


_library.EXTRA_GRADIENTS["pair_loss"] = _library.ExtraGradient("bounds", ("slopes",), _bounds_gradient)


def statistics(
    op: str, inputs: _checks.PairInputs, options: Options, bounds: Tensor | None = None, check_finite: bool = False
) -> Statistics:
    """The statistics of each query.

    Args:
        op: the public function, for errors.
        bounds: (2, M) of the positives and of the negatives; differentiable for "hinge" and "softplus", whose base they
            replace. For "exp" they mine.
    """
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if bounds is not None:
        bounds = bounds.to(compute_dtype(inputs.embeddings.dtype)).contiguous()
    if namespace is None:
        results = reference.pair_loss(inputs, bounds, *options.arguments())
    else:
        forward = getattr(torch.ops, namespace).pair_loss_fwd
        precision, deterministic = _backend.get_float32_precision(), torch.are_deterministic_algorithms_enabled()
        *results, _ = forward(*inputs, bounds, *options.arguments(), precision, deterministic, check_finite)
    return Statistics(*(side for result in results for side in result.unbind(0)))
