"""Checks of direct calls of the operators: each error names the operator, the argument, what was expected and came."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlkernels._checks import fail, floating, one_of

from ._rows import compute_dtype

__all__ = ["fail", "like", "matrix", "one_of", "pair_arguments", "vector"]


def matrix(op: str, argument: str, x: Tensor, shape: str = "(M, D)") -> None:
    if x.ndim != 2:
        fail(op, argument, shape, tuple(x.shape))
    floating(op, argument, x)


def like(op: str, argument: str, y: Tensor, x: Tensor) -> None:
    """A (N, D) matrix beside x (M, D): of its width, dtype and device."""
    matrix(op, argument, y, "(N, D)")
    if y.shape[1] != x.shape[1]:
        fail(op, argument, f"(N, D) with D={x.shape[1]}", tuple(y.shape))
    if y.dtype != x.dtype or y.device != x.device:
        fail(op, argument, f"{x.dtype} on {x.device}", f"{y.dtype} on {y.device}")


def vector(op: str, argument: str, v: Tensor, size: int, dtype: torch.dtype) -> None:
    if tuple(v.shape) != (size,):
        fail(op, argument, f"({size},)", tuple(v.shape))
    if v.dtype != dtype:
        fail(op, argument, str(dtype), v.dtype)


def pair_arguments(
    op: str,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ids: Tensor | None,
    ref_ids: Tensor | None,
) -> None:
    """The arguments that every operator on pairs starts with."""
    matrix(op, "embeddings", embeddings)
    m = embeddings.shape[0]
    vector(op, "labels", labels, m, torch.int64)
    if ids is not None:
        vector(op, "ids", ids, m, torch.int64)
    if (ref_emb is None) != (ref_labels is None):
        fail(op, "ref_labels", "given with ref_emb, and only then", "None" if ref_labels is None else "a tensor")
    if (ref_ids is None) != (ref_emb is None or ids is None):
        fail(op, "ref_ids", "given with ids and ref_emb, and only then", "None" if ref_ids is None else "a tensor")
    if ref_emb is None:
        return
    like(op, "ref_emb", ref_emb, embeddings)
    n = ref_emb.shape[0]
    assert ref_labels is not None
    vector(op, "ref_labels", ref_labels, n, torch.int64)
    if ref_ids is not None:
        vector(op, "ref_ids", ref_ids, n, torch.int64)


def per_query(op: str, argument: str, v: Tensor, embeddings: Tensor) -> None:
    """A gradient of, or a statistic from, every query row, in the compute dtype."""
    vector(op, argument, v, embeddings.shape[0], compute_dtype(embeddings.dtype))


def rows_of(op: str, argument: str, index: Tensor, size: int, x: Tensor) -> None:
    """(size,) rows of x, or -1. On a GPU, which is not waited for, what is outside counts as -1."""
    vector(op, argument, index, size, torch.int64)
    if index.device.type == "cpu" and bool(((index < -1) | (index >= x.shape[0])).any()):
        fail(op, argument, f"in [-1, N) with N={x.shape[0]}", index.tolist())
