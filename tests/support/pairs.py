"""Batches of pairs as the tests of operators and of losses pass them around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from support import brute_force

from dmlkernels.testing import Pairs


def tensors(pairs: Pairs) -> list[torch.Tensor]:
    return [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]


def problem_of(pairs: Pairs, **more: Any) -> brute_force.Problem:
    return brute_force.Problem(*(None if t is None else t.cpu().numpy() for t in pairs), **more)


def module_of(module: torch.nn.Module, pairs: Pairs, indices: Any = None, **ids: Any) -> Callable[..., Any]:
    return lambda x, g=None: module(x, pairs.labels, indices, g, pairs.ref_labels, **ids)


def ids_of(pairs: Pairs) -> dict[str, torch.Tensor]:
    some = {"ids": torch.arange(len(pairs.labels), device=pairs.labels.device) // 2}
    if pairs.ref_labels is None:
        return some
    return {**some, "ref_ids": torch.arange(len(pairs.ref_labels), device=pairs.labels.device) // 3}


def all_pairs(pairs: Pairs) -> tuple[torch.Tensor, ...]:
    """(a1, p, a2, n) of every pair."""
    p = problem_of(pairs)
    rows = range(len(p.y))
    listed = [[(i, j) for i in rows for j in p.positives(i)], [(i, j) for i in rows for j in p.negatives(i)]]
    return tuple(torch.tensor(column, device=pairs.labels.device) for side in listed for column in zip(*side))
