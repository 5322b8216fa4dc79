"""One run of a contender, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from batches import Batch, device
from contenders import Run
from torch import Tensor


class Taken(NamedTuple):
    forward: float  # seconds
    total: float  # seconds, with the backward
    outputs: tuple[Tensor, ...]
    grad: Tensor | None  # (M, D)


class _Clock:
    """Marks of one run. On a GPU they are events in the stream: the processor that launches runs ahead of it."""

    def __init__(self) -> None:
        self._marks: list[Any] = []

    def mark(self) -> None:
        if device().type == "cuda":
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From the first mark to each later one."""
        first, *later = self._marks
        if device().type == "cuda":
            torch.cuda.synchronize()
            return [first.elapsed_time(mark) / 1e3 for mark in later]
        return [mark - first for mark in later]


def take(run: Run, batch: Batch, incoming: Sequence[Tensor]) -> Taken:
    """One forward, as in training, and its backward."""
    batch, clock = batch.training(), _Clock()
    clock.mark()
    outputs = run(batch)
    clock.mark()
    if not outputs[0].requires_grad:
        (forward,) = clock.seconds()
        return Taken(forward, forward, outputs, None)
    incoming = tuple(g.to(o.dtype) for g, o in zip(incoming, outputs))
    clock.mark()
    torch.autograd.backward(outputs[: len(incoming)], incoming)
    clock.mark()
    forward, started, ended = clock.seconds()
    return Taken(forward, forward + ended - started, tuple(o.detach() for o in outputs), batch.embeddings.grad)
