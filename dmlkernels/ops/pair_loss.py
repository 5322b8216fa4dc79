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
from ..reference.pair_loss import OneSide as OneSide  # losses know both from here
from ..reference.pair_loss import Side as Side
from ..reference.pairwise import compute_dtype


class Options(NamedTuple):
    """What is summed up; see `reference.pair_loss`."""

    value: str  # similarity | distance | squared
    pos: Side | None  # None: the side does not take part
    neg: Side | None
    classes: int | None = None  # labels lie in [0, classes)
    weight_grad: bool = False  # the weights of a moment are differentiated
    grad: str = "full"  # a pair's gradient goes to both ends; "query": to the query only
    apart: bool = False  # coincident pairs are excluded
    neg_totals: bool = False  # of neg_sum and neg_slope only the totals over the queries are meant, without a gradient

    def sides(self) -> tuple[Side, Side]:
        """Both sides as the operator takes them."""
        pos, neg = (side or Side("none", 0.0) for side in (self.pos, self.neg))
        return Side(pos[0], *map(float, pos[1:])), Side(neg[0], *map(float, neg[1:]))

    def arguments(self) -> tuple[Any, ...]:
        """As the operator takes them."""
        pos, neg = self.sides()
        return self.classes, self.value, *pos, *neg, self.weight_grad, self.grad, self.apart, self.neg_totals


class Statistics(NamedTuple):
    """Of each query (M,), float32 (float64 for float64): all but members and slopes are differentiable."""

    pos: Tensor  # log-sum-exp (−inf of none), sum of the term, or moment
    neg: Tensor
    pos_log_sum: Tensor  # "moment": log of the sum of its weights (−inf of none)
    neg_log_sum: Tensor
    pos_sum: Tensor  # sum of the values that take part
    neg_sum: Tensor
    pos_members: Tensor  # how many positives there are
    neg_members: Tensor
    pos_slope: Tensor  # "softplus": the sum of the term's derivative by x; else how many take part
    neg_slope: Tensor

    @staticmethod
    def of(pos: OneSide, neg: OneSide) -> Statistics:
        return Statistics(*(tensor for both in zip(pos, neg) for tensor in both))

    def positives(self) -> OneSide:
        return OneSide(*self[::2])

    def negatives(self) -> OneSide:
        return OneSide(*self[1::2])


def _bounds_gradient(known: Mapping[str, Any]) -> Tensor:
    """(2, M): x falls by scale where a bound rises by 1; those of "exp" mine, and have no gradient."""
    factors = []
    for side in ("pos", "neg"):
        bounded = known[f"{side}_term"] not in ("none", "exp", "moment")
        factors.append(-known[f"{side}_scale"] if bounded else 0.0)
    by_side = torch.stack([factor * grad for factor, grad in zip(factors, known["grad_stats"])])
    return (by_side * known["slopes"]).to(known["bounds"].dtype)


_library.EXTRA_GRADIENTS["pair_loss"] = _library.ExtraGradient("bounds", ("slopes",), _bounds_gradient)


def of_both_sides(
    op: str,
    inputs: _checks.PairInputs,
    options: Options,
    bounds: Tensor | None = None,
    check_finite: bool = False,
    names: Mapping[str, str] = _checks.NO_NAMES,
) -> OneSide:
    """`statistics`, each (2, M): of the positives and of the negatives, for formulae that are alike of both.

    Args:
        names: as of `_checks.renamed`.
    """
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if bounds is not None:
        bounds = bounds.to(compute_dtype(inputs.embeddings.dtype)).contiguous()
    if namespace is None:
        pos, neg = options.sides()
        fixed = (options.weight_grad, options.grad, options.apart)
        arguments = (inputs, bounds, options.classes, options.value, pos, neg, *fixed)
        return OneSide(*_checks.renamed(op, reference.pair_loss, *arguments, names=names))
    forward = _library.forward(namespace, "pair_loss")
    precision, deterministic = _backend.get_float32_precision(), torch.are_deterministic_algorithms_enabled()
    arguments = (*inputs, bounds, *options.arguments(), precision, deterministic, check_finite)
    return OneSide(*_checks.renamed(op, forward, *arguments, names=names)[:-1])


def statistics(
    op: str, inputs: _checks.PairInputs, options: Options, bounds: Tensor | None = None, check_finite: bool = False
) -> Statistics:
    """The statistics of each query.

    Args:
        op: the public function, for errors.
        bounds: (2, M) of the positives and of the negatives; differentiable for "hinge" and "softplus", whose base they
            replace. For "exp" they mine; a "moment" takes none.
    """
    both = of_both_sides(op, inputs, options, bounds, check_finite)
    found = Statistics(*(side for of_both in both for side in of_both.unbind(0)))
    return found._replace(neg_sum=found.neg_sum.detach()) if options.neg_totals else found
