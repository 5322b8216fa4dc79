"""What is measured in a process that has done nothing else: memory, and the speed of one thread."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

import dmlkernels
from bench.kernels.batches import Batch, device
from bench.kernels.cases import Case
from bench.kernels.contenders import contender, products_of
from bench.kernels.timing import take
from dmlkernels import functional as F
from dmlkernels._contract import TILE
from dmlkernels.train.measure import peak_extra_bytes

T = TypeVar("T")
_children = multiprocessing.get_context("forkserver")
# The children fork from a process that has imported everything and computed nothing.
_children.set_forkserver_preload(["dmlkernels.train.measure"])


def in_child(function: Callable[..., T], *arguments: object) -> T | None:
    """function(*arguments) in a fresh process; None if the system ended it, as it does when memory runs out."""
    with ProcessPoolExecutor(1, mp_context=_children) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return None


def _peak(case: Case, name: str) -> int | None:
    def step(of: Case, batch: Batch, incoming: Sequence[Tensor]) -> None:
        take(contender(of, name), batch, incoming)

    # A compiled function is specialised to its shape: only the full size brings its code in.
    tiny = case if name == "compiled" else case.shrunk()
    full = partial(step, case, case.batch(), case.incoming())
    with products_of(case):
        return peak_extra_bytes(full, partial(step, tiny, tiny.batch(), tiny.incoming()), device())


def peak_bytes(case: Case, name: str) -> int | None:
    """Extra bytes of one forward and backward, on the CPU in a process that has done nothing else; None: unknown."""
    return _peak(case, name) if device().type == "cuda" else in_child(_peak, case, name)


def _rate(seconds: Callable[[], float], flops: float) -> float:
    return float(f"{flops / sorted(seconds() for _ in range(7))[3] / 1e9:.3g}")


def _one_thread(rows: int, width: int) -> dict[str, float]:
    """GFLOP/s of the product alone, with one thread: this package's tiles, and torch.mm."""
    torch.set_num_threads(1)
    x, buffer = torch.randn(rows, width), torch.empty(rows, rows)
    labels = torch.arange(rows)  # no positives, and no negative nearer than alpha: products and cheap tests are left

    def clock(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    ours = rows * (rows + TILE) * width  # the tiles on and above the diagonal
    with dmlkernels.use_backend("native"):
        tiles = _rate(partial(clock, lambda: F.ranked_list_loss(x, labels, alpha=1e-3, margin=0.0)), ours)
    return {"tiles": tiles, "mm": _rate(partial(clock, lambda: torch.mm(x, x.T, out=buffer)), 2 * rows * rows * width)}


def one_thread_rates(rows: int = 4096, width: int = 2048) -> dict[str, float] | None:
    return in_child(_one_thread, rows, width)
