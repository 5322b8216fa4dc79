"""What CrossBatchMemory has to be: a list of rows, and the loss of a batch against them."""

from __future__ import annotations

import torch

from dmlkernels.testing import Outcome, Pairs, evaluate, make_pairs

D, ROWS, SIZE = 6, 12, 30  # the third batch is the first that does not fit


def batch(step: int, device: str = "cpu", rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Pairs:
    return make_pairs("random", rows, d=D, classes=4, dtype=dtype, seed=50 + step, device=device)


def outcome(loss, pairs: Pairs, **given) -> Outcome:
    """Value of a batch, and the gradient of its embeddings."""
    weights = torch.ones((), device=pairs.labels.device)
    return evaluate(lambda x: loss(x, pairs.labels, **given), [pairs.embeddings], weights)


class Remembered:
    """A memory as a list of rows, the oldest first, and the loss of a batch against it."""

    def __init__(self, loss: torch.nn.Module, size: int = SIZE) -> None:
        self.loss, self.size, self.count = loss, size, 0
        self.rows: list[tuple] = []

    def __call__(self, x: torch.Tensor, y: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        if ids is None:
            ids = torch.arange(self.count, self.count + len(x), device=x.device)
        self.count += len(x)
        self.rows = (self.rows + list(zip(x.detach(), y, ids, strict=True)))[-self.size :]
        g, h, ref_ids = (torch.stack(column) for column in zip(*self.rows, strict=True))
        return self.loss(x, y, ref_emb=g, ref_labels=h, ids=ids, ref_ids=ref_ids)
