"""The tests of every bench_*.py, which imports them: conftest.py gives them its CASES and the contenders."""

from __future__ import annotations

from typing import Any

import torch

from bench.kernels import contenders
from bench.kernels.cases import Case
from bench.kernels.timing import SAMPLES


def test_forward(benchmark: Any, case: Case, contender: str) -> None:
    """The forward as in training."""
    benchmark.group = f"{case.name} forward"
    run, batch = contenders.contender(case, contender), case.batch().training()
    benchmark(run, batch)


def test_backward(benchmark: Any, case: Case, contender: str) -> None:
    """The backward of a fresh forward each time."""
    benchmark.group = f"{case.name} backward"
    run, batch, incoming = contenders.contender(case, contender), case.batch(), case.incoming()
    benchmark.pedantic(
        torch.autograd.backward,
        setup=lambda: ((run(batch.training())[: len(incoming)], incoming), {}),
        rounds=SAMPLES,
        warmup_rounds=1,
    )
