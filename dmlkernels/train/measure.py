"""What a step costs: its time, and the memory that it takes on top of what was there before.

``peak_extra_bytes`` reads the high-water mark of the process's resident memory, so whatever a step touches counts:
tensors, buffers of C++ kernels, work space of the BLAS. ``compare_backends`` takes both numbers in a fresh process,
where no earlier step has left pages behind that a later one would reuse for nothing.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dmlkernels.train.config import JobError

WARM_ROWS = 64
SAMPLES = 9
SECONDS = 6.0


def _status(field: str) -> int:
    """A memory field of /proc/self/status, in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_extra_bytes(
    fn: Callable[[], object], warmup: Callable[[], object] | None = None, device: str | torch.device = "cpu"
) -> int | None:
    """The most memory that ``fn()`` holds at one time beyond what the process held before.

    On the CPU (Linux): free heap goes back to the system (``malloc_trim``), the high-water mark of the resident set is
    reset (5 into ``/proc/self/clear_refs``), ``fn`` runs once, and ``VmHWM`` after it less ``VmRSS`` before it is the
    answer. Pages of code that ``fn`` is the first to run would count too: ``warmup``, the same work at a tiny size,
    brings them in. Memory that a library keeps from an earlier call of the same size does not count, so measure in a
    fresh process what has been called before. The kernel counts in pages, and a huge page is 2 MB. On CUDA: the
    allocator's peak, which leaves out what a kernel library takes past PyTorch.

    Returns:
        Bytes, or None where the system offers no high-water mark that can be reset (macOS, Windows, some sandboxes).
    """
    if warmup is not None:
        warmup()
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        fn()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        with open("/proc/self/clear_refs", "w", encoding="ascii") as clear:
            clear.write("5")
        before = _status("VmRSS")
    except (OSError, TypeError):
        return None
    fn()
    return max(0, _status("VmHWM") - before)


def interleaved_times(
    steps: Mapping[str, Callable[[], object]], device: str | torch.device = "cpu", samples: int = SAMPLES
) -> dict[str, float]:
    """Median seconds of each step, taken in turns so that a busy moment of the machine meets all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    cuda = torch.device(device).type == "cuda"
    deadline = time.perf_counter() + SECONDS
    for turn in range(samples + 1):
        for name, step in steps.items():
            if cuda:
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize(device)
            times[name].append(time.perf_counter() - start)
        if turn >= 3 and time.perf_counter() > deadline:
            break
    return {name: median(taken[1:]) for name, taken in times.items()}


def compare_backends(
    loss: Mapping[str, Any], embeddings: Tensor, labels: Tensor, backends: Sequence[str], device: str = "cpu"
) -> dict[str, dict[str, float | int | None]]:
    """Forward and backward of one loss on one batch, by each backend, in a child process with as many threads as here.

    Args:
        loss: arguments of ``dmlkernels.train.losses.build``.
        embeddings: the batch, (M, D).
        labels: its classes, (M,).
        backends: names for ``dmlkernels.use_backend``.
        device: where to compute.

    Returns:
        For each backend ``step_time`` in seconds and ``peak_extra_bytes`` (the gradient included; None: unknown here).
    """
    request = {"loss": dict(loss), "backends": list(backends), "device": device, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch.pt"
        torch.save({"embeddings": embeddings.detach().cpu(), "labels": labels.cpu()}, batch)
        done = subprocess.run(
            [sys.executable, "-m", "dmlkernels.train.measure", str(batch), json.dumps(request)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise JobError(f"the measurement of the loss's time and memory failed: {reason}")
    return json.loads(done.stdout.splitlines()[-1])


def _child(batch: str, request: dict[str, Any]) -> dict[str, dict[str, float | int | None]]:
    import dmlkernels
    from dmlkernels.train import losses

    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    saved = torch.load(batch, weights_only=True)
    labels = saved["labels"].to(device)
    embeddings = saved["embeddings"].to(device)
    loss = losses.build(**request["loss"]).to(device)

    def step(backend: str, rows: int) -> None:
        leaf = embeddings[:rows].detach().requires_grad_()
        with dmlkernels.use_backend(backend):
            loss(leaf, labels[:rows]).backward()

    backends: list[str] = request["backends"]
    full = {name: functools.partial(step, name, len(labels)) for name in backends}
    tiny = {name: functools.partial(step, name, WARM_ROWS) for name in backends}
    peaks = {name: peak_extra_bytes(full[name], tiny[name], device) for name in backends}
    times = interleaved_times(full, device)
    return {name: {"step_time": times[name], "peak_extra_bytes": peaks[name]} for name in backends}


if __name__ == "__main__":
    print(json.dumps(_child(sys.argv[1], json.loads(sys.argv[2]))))
