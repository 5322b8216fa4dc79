"""pair_loss: the row statistics of every pair loss, streamed over tiles of pairs that are never stored.

A loss of the family is a few lines of PyTorch on (M,) statistics; autograd takes their gradients back here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from .._schemas import TILE
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


def _fake_fwd(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    m, n = embeddings.shape[0], (embeddings if ref_emb is None else ref_emb).shape[0]
    dtype = compute_dtype(embeddings.dtype)
    return (
        *(embeddings.new_empty(2, m, dtype=dtype) for _ in range(4)),
        embeddings.new_empty((m + TILE - 1) // TILE, (n + TILE - 1) // TILE, dtype=torch.uint8),
    )


def _fake_bwd(
    grad_stats: Tensor, grad_sums: Tensor, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    ref_rows = ref_emb.shape[0] if ref_emb is not None and arguments[-1] else 0
    return embeddings.new_empty(embeddings.shape), embeddings.new_empty(ref_rows, embeddings.shape[1])


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize, bounds, *options, _ = inputs
    stats, _, _, slopes, tile_active = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, bounds, stats, slopes, tile_active)
    ctx.rows, ctx.options, ctx.arguments = (ignore_index, normalize), options, len(inputs)


_TERM, _POS_SCALE, _NEG_SCALE = 1, 3, 7  # places among the options
_BOUNDS = 8  # place among the inputs


def _backward(bwd: Callable) -> Callable:
    def backward(ctx: Any, grad_stats: Tensor | None, grad_sums: Tensor | None, *unused: None) -> tuple:
        grads: list[Tensor | None] = [None] * ctx.arguments
        if grad_stats is None and grad_sums is None:
            return tuple(grads)
        *pair, bounds, stats, slopes, tile_active = ctx.saved_tensors
        grad_stats, grad_sums = (
            torch.zeros_like(stats) if grad is None else grad.contiguous() for grad in (grad_stats, grad_sums)
        )
        if bounds is not None and ctx.needs_input_grad[_BOUNDS] and ctx.options[_TERM] != "exp":
            by_side = [-ctx.options[scale] * grad_stats[k] for k, scale in enumerate((_POS_SCALE, _NEG_SCALE))]
            grads[_BOUNDS] = (torch.stack(by_side) * slopes).to(bounds.dtype)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            need_grad_ref = pair[2] is not None and ctx.needs_input_grad[2]
            state = (stats, tile_active, bounds)
            grads[0], grad_ref = bwd(grad_stats, grad_sums, *pair, *ctx.rows, *state, *ctx.options, need_grad_ref)
            grads[2] = grad_ref if need_grad_ref else None
        return tuple(grads)

    return backward


def register() -> None:
    _library.register(
        "pair_loss", fake_fwd=_fake_fwd, fake_bwd=_fake_bwd, setup_context=_setup_context, backward=_backward
    )


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
