"""Distances of sampled pairs (M, S), whose memory does not grow with S·D."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..reference.pairwise import rows


def _difference(f: Tensor, g: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f − g at index (M, D), its squared length (M,), and whether it has a direction; of one column of pairs."""
    chosen = g[index.clamp_min(0)]
    between = f - chosen
    squared = between.square().sum(1)
    tiny = (4 * torch.finfo(f.dtype).eps) ** 2 * (f.square().sum(1) + chosen.square().sum(1)) / 2
    return between, squared, (index >= 0) & (squared > tiny)


class _SampledDistance(torch.autograd.Function):
    """One column of pairs at a time, again in the backward, which is differentiable. Without g the gallery is f."""

    @staticmethod
    def forward(f: Tensor, g: Tensor | None, index: Tensor) -> Tensor:
        g = f if g is None else g
        distances = [_difference(f, g, column)[1].sqrt() for column in index.unbind(1)]
        return torch.where(index >= 0, torch.stack(distances, 1), 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        f, own, index = ctx.saved_tensors
        g = f if own is None else own
        grad_f = torch.zeros_like(f)
        grad_g = grad_f if own is None else torch.zeros_like(g)
        for column, incoming in zip(index.unbind(1), grad.unbind(1)):
            between, squared, directed = _difference(f, g, column)
            # The square root is of what has a slope, or the second derivative of a coincident pair would be NaN.
            weight = torch.where(directed, incoming / torch.where(directed, squared, 1).sqrt(), 0)
            pull = torch.where(directed[:, None], weight[:, None] * between, 0)
            grad_f += pull
            grad_g.index_add_(0, column.clamp_min(0), pull, alpha=-1)
        return grad_f, None if own is None else grad_g, None


def sampled_distance(inputs: _checks.PairInputs, index: Tensor) -> Tensor:
    """Distance (M, S) of each query to the gallery rows at index (M, S); 0 for −1."""
    x, labels, y, ref_labels, _, _, ignore_index, normalize = inputs
    if ignore_index is not None:
        # What is ignored may be NaN, and must not reach a gradient.
        x = torch.where((labels != ignore_index)[:, None], x, 0)
        if y is not None and ref_labels is not None:
            y = torch.where((ref_labels != ignore_index)[:, None], y, 0)
    f = rows(x, normalize)
    g = None if y is None else rows(y, normalize)
    if index.numel() == 0 or (g is not None and g.shape[0] == 0):
        return f.new_zeros(index.shape)
    return _SampledDistance.apply(f, g, index)
