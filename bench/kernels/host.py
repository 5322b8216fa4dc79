"""The machine that the numbers belong to, and what fits into its memory."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import dmlkernels
from bench.kernels.batches import class_count, device
from bench.kernels.cases import OPERATIONS, Case
from bench.report.tables import ROOT

REFERENCE_BYTES = 50  # per pair: what the eager reference needs at most, forward and backward (measured: 28 to 48)

LOOP_MATRICES = 5  # D × D float32, per class: what autograd holds of the MCR² loop until the backward (measured: 4.4)


def _field(path: str, name: str) -> str | None:
    """The first value of a field in a file of /proc."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _memory(name: str) -> int | None:
    """Bytes of a field of /proc/meminfo."""
    field = _field("/proc/meminfo", name)
    return int(field.split()[0]) * 1024 if field else None


def reference_fits(case: Case) -> bool:
    """Whether there is memory for the eager reference's M×N matrices, if it makes any."""
    return not OPERATIONS[case.operation].pairs or _fits(REFERENCE_BYTES * case.rows * case.columns)


def loop_fits(case: Case) -> bool:
    """Whether there is memory for the D×D matrices of all classes."""
    return _fits(LOOP_MATRICES * 4 * case.width**2 * class_count(case.rows))


def _fits(size: int) -> bool:
    free = torch.cuda.mem_get_info(device())[0] if device().type == "cuda" else _memory("MemAvailable")
    return free is None or size < free


def _commit() -> str:
    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "dmlkernels", "bench/kernels")
    except FileNotFoundError:
        return "unknown"
    return "unknown" if commit is None else commit + (" with changes" if changed else "")


def processor() -> str:
    return _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    from dmlkernels import _C  # a build without it is refused in plain words before this

    memory = _memory("MemTotal")
    return {
        "cpu": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory / 1e9) if memory else 0,
        "isa": _C.cpu_capability(),
        "torch": torch.__version__,
        "dmlkernels": dmlkernels.__version__,
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2),
        **({"gpu": _gpu()} if device().type == "cuda" else {}),
    }


def _gpu() -> str:
    properties = torch.cuda.get_device_properties(device())
    return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
