"""Times of contenders that take turns in one process, once they agree."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.kernels.agreement import assert_agree
from bench.kernels.batches import Batch, device
from bench.kernels.cases import Case
from bench.kernels.contenders import Run, Taken, contender, products_of

SAMPLES = 30
LONG = 1.0  # seconds; a contender that takes longer is sampled ...
LONG_BUDGET = 10.0  # ... for about so many seconds,
FEWEST = 3  # but at least so often
FRESH = 3  # batches that take turns
QUEUE = 8_000_000  # cycles, about 4 ms: what a GPU waits first, while the processor launches a run that takes it 2 ms


class _Clock:
    """Marks of one run. On a GPU they are events in the stream, behind a wait in which all of the run is launched: the
    time is the kernels', but for a contender that itself waits for the GPU in between.
    """

    def __init__(self) -> None:
        self._marks: list[Any] = []
        if device().type == "cuda":
            torch.cuda._sleep(QUEUE)

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


def assert_rivals_agree(case: Case, names: Sequence[str] = ("reference",)) -> None:
    """The check of `measure` alone."""
    batch, incoming = case.batch(), case.incoming()
    with products_of(case):
        ours = take(contender(case, "fused"), batch, incoming)
        for name in names:
            assert_agree(case, name, ours, take(contender(case, name), batch, incoming))


def quantiles(seconds: Sequence[float]) -> list[float]:
    """20 %, 50 % and 80 %, to 4 digits."""
    levels = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    return [float(f"{q:.4g}") for q in torch.quantile(torch.tensor(seconds, dtype=torch.float64), levels).tolist()]


def measure(case: Case, names: Sequence[str], samples: int = SAMPLES) -> dict[str, dict]:
    """Times of the contenders, the fused one first, taking turns in this process; every rival is checked against it.

    A contender that takes longer than LONG skips turns, evenly.
    """
    with products_of(case):
        return _measure(case, names, samples)


def _measure(case: Case, names: Sequence[str], samples: int) -> dict[str, dict]:
    batches, incoming = [case.batch(seed) for seed in range(FRESH)], case.incoming()
    runs = {name: contender(case, name) for name in names}
    turns = {}
    first: Taken | None = None
    for name, run in runs.items():
        if name == "compiled" or device().type == "cuda":
            take(run, batches[0], incoming)  # compiles, or makes the handles of the CUDA libraries
        taken = take(run, batches[0], incoming)
        if first is None:
            first = taken
        elif taken.grad is not None:
            assert_agree(case, name, first, taken)
        wanted = samples if taken.total <= LONG else int(LONG_BUDGET / taken.total)
        turns[name] = min(samples, max(FEWEST, wanted))
        del taken
    del first

    taken_by: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(samples):
        for name, run in runs.items():
            if (turn + 1) * turns[name] // samples > turn * turns[name] // samples:
                taken_by[name].append(take(run, batches[turn % FRESH], incoming)[:2])
    result: dict[str, dict] = {}
    for name, times in taken_by.items():
        forward, total = zip(*times)
        result[name] = {"samples": len(times), "forward": quantiles(forward), "total": quantiles(total)}
    return result
