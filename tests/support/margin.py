"""Margin loss, with draws that are known."""

from __future__ import annotations

import torch

from dmlkernels import functional as F
from dmlkernels.testing import Pairs


def bound_to(pairs: Pairs, **options):
    """The function of the embeddings, and of the gallery if there is one."""
    return lambda x, g=None: F.margin_loss(x, pairs.labels, g, pairs.ref_labels, **options)


def uniforms_of(rows: int, draws: int, device) -> torch.Tensor:
    return torch.rand(rows, draws, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(device)
