"""Positive definite matrices, and how far a result is from the truth."""

from __future__ import annotations

import numpy as np
import torch

from dmlkernels.testing import evaluate

SMALL = 32  # largest matrix of which the CPU factors several at a time


def definite(batch, n, dtype=torch.float64, condition=None, seed=0, device="cpu"):
    """(batch, n, n) symmetric positive definite; with a condition number, its eigenvalues are spaced evenly in log."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(batch, n, n, dtype=torch.float64, generator=generator)
    if condition is None:
        a = basis @ basis.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)
    else:
        q = torch.linalg.qr(basis)[0]
        eigenvalues = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
        a = q * eigenvalues @ q.mT
    return ((a + a.mT) / 2).to(dtype).to(device)


def matrices(function, a, weights=None):
    """`evaluate` of a function of one (B, n, n) tensor."""
    return evaluate(function, [a], weights)


def relative(got, truth):
    return float(torch.linalg.vector_norm(got.double() - truth.double()) / torch.linalg.vector_norm(truth.double()))
