"""triplet: the triplets of every positive with all or with its semi-hard negatives, none of which are ever listed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _backend, _checks, _library
from .._schemas import TILE
from ..reference import triplet as reference
from ..reference.pairwise import compute_dtype

_NEGATIVE_ARGUMENT = 8  # place of `negative` in the schema of triplet_fwd


class Triplets(NamedTuple):
    """Of each anchor (M,); loss_sum is differentiable, float32 (float64 for float64)."""

    loss_sum: Tensor
    nonzero: Tensor  # int64: triplets that cost something
    count: Tensor  # type: ignore[assignment]  # int64: triplets; not tuple.count


def _fake_fwd(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    m, n = embeddings.shape[0], (embeddings if ref_emb is None else ref_emb).shape[0]
    if arguments[_NEGATIVE_ARGUMENT - 3] == "semihard":
        m_tiles = n_tiles = 0
    else:
        m_tiles, n_tiles = (m + TILE - 1) // TILE, (n + TILE - 1) // TILE
    return (
        embeddings.new_empty(m, dtype=compute_dtype(embeddings.dtype)),
        embeddings.new_empty(m, dtype=torch.int64),
        embeddings.new_empty(m, dtype=torch.int64),
        embeddings.new_empty(m_tiles, n_tiles, dtype=torch.uint8),
    )


def _fake_bwd(
    grad_loss_sum: Tensor, embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    ref_rows = ref_emb.shape[0] if ref_emb is not None and arguments[-1] else 0
    return embeddings.new_empty(embeddings.shape), embeddings.new_empty(ref_rows, embeddings.shape[1])


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize, *options, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, output[3])
    ctx.rows, ctx.options, ctx.arguments = (ignore_index, normalize), options, len(inputs)


def _backward(bwd: Callable) -> Callable:
    def backward(ctx: Any, grad_loss_sum: Tensor | None, *unused: None) -> tuple:
        none = (None,) * (ctx.arguments - 3)
        if grad_loss_sum is None:
            return None, None, None, *none
        *pair, tile_active = ctx.saved_tensors
        need_grad_ref = pair[2] is not None and ctx.needs_input_grad[2]
        grad_emb, grad_ref = bwd(grad_loss_sum.contiguous(), *pair, *ctx.rows, tile_active, *ctx.options, need_grad_ref)
        return grad_emb, None, grad_ref if need_grad_ref else None, *none

    return backward


def register() -> None:
    _library.register(
        "triplet", fake_fwd=_fake_fwd, fake_bwd=_fake_bwd, setup_context=_setup_context, backward=_backward
    )


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
    forward = getattr(torch.ops, namespace).triplet_fwd
    precision, deterministic = _backend.get_float32_precision(), torch.are_deterministic_algorithms_enabled()
    results = forward(*inputs, negative, float(margin), soft, precision, deterministic, check_finite)
    return Triplets(*results[:3])
