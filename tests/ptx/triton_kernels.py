"""The Triton kernels as a GPU has them: what Triton compiles for sm_80, run by the interpreter of PTX on CPU tensors.

    python -m ptx.triton_kernels float32 ranked_list ranked_list:tiles contrastive:duplicates ...

compares value and gradients of these calls of cuda_host/smoke.py with the float64 reference, of pair losses by rows, by
tiles or by tiles with copies among the rows, and prints the kernels that were executed. In a process of its own: where
Triton's interpreter is on, nothing is compiled.
"""

from __future__ import annotations

import functools
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"
os.environ["TRITON_CACHE_DIR"] = str(Path(__file__).resolve().parents[2] / "build" / "triton-ptx")  # no machine code

import torch
from cuda_host import smoke
from dmlkernels.triton_kernels import _configs
from torch import Tensor
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import JITFunction

from bench.report.triton_resources import Case, bound_arguments, specialised
from dmlkernels import _backend, _contract, _library, _triton, selfcheck, use_backend
from dmlkernels.testing import Outcome, evaluate, make_pairs

from . import interpreter

ARCHITECTURE = 80
WORDS = {"fp32": "<f", "fp64": "<d"}
executed: set[str] = set()


class Entry(NamedTuple):
    module: interpreter.Module
    name: str
    threads: int
    shared: int


@functools.cache
def _entry(case: Case) -> Entry:
    compiled = case.compile(ARCHITECTURE)
    metadata = compiled.metadata
    return Entry(interpreter.Module(compiled.asm["ptx"]), metadata.name, 32 * metadata.num_warps, metadata.shared)


def _leaves(kinds: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Type and value of every parameter of the compiled kernel."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _leaves(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _bytes(kind: str, value: Any, size: int) -> bytes:
    if kind in WORDS:
        return struct.pack(WORDS[kind], value)
    number = value.data_ptr() if isinstance(value, Tensor) else int(value)
    return number.to_bytes(size, "little", signed=number < 0)


def _run(kernel: JITFunction, *arguments: Any, grid: tuple[int, ...], warmup: bool, **named: Any) -> None:
    """A launch, in the place of JITFunction.run."""
    case = specialised(kernel, arguments, named)
    entry = _entry(case)
    places = entry.module.parameters(entry.name)
    blob = bytearray(places[-1].offset + places[-1].size)
    # The rest are pointers to scratch memory, which no kernel of ours asks for.
    values = _leaves((kind for _, kind in case.signature), bound_arguments(kernel, arguments, named))
    for place, (kind, value) in zip(places, values, strict=False):
        blob[place.offset : place.offset + place.size] = _bytes(kind, value, place.size)
    sides = (*grid, 1, 1)[:3]
    entry.module.launch(entry.name, sides, (entry.threads, 1, 1), bytes(blob), entry.shared)
    executed.add(case.name.partition("<")[0])


def load() -> None:
    """Put the kernels behind the operators of `dmlkernels_triton` for CPU tensors."""
    CUDABackend.make_cubin = lambda *arguments: b""
    JITFunction.run = _run
    _configs.capability = lambda device: ARCHITECTURE
    for operator in _contract.OPERATORS:
        launch = functools.partial(_triton._launch, operator)
        _library.implement("dmlkernels_triton", operator, launch, "cpu")
    _backend.loaded["triton"].add("cpu")
    interpreter.watch_torch()


def _outcome(name: str, kind: str, dtype: torch.dtype, exact: bool) -> Outcome:
    call = smoke.CALLS[name]
    x, y, g, h = make_pairs(kind, smoke.M, smoke.N, 24 if call.wide else smoke.D, smoke.CLASSES, dtype)
    tensors = [t.double() if exact else t for t in (x, g)]
    return evaluate(lambda x, g: call.function(x, y, g, h), tensors)


def errors(name: str, kind: str, dtype: torch.dtype) -> list[float]:
    """Of value and gradients, relative to the largest entry of each."""
    with use_backend("reference"):
        truth = _outcome(name, kind, dtype, exact=True)
    with use_backend("triton"):
        got = _outcome(name, kind, dtype, exact=False)
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip((got.value, *got.grads), (truth.value, *truth.grads), strict=True)
    ]


def main() -> int:
    dtype, *names = sys.argv[1:]
    torch.set_num_threads(1)
    load()
    _configs.SYMMETRIC_FROM = 0
    failed = 0
    for name in names:
        call, _, schedule = name.partition(":")
        torch.use_deterministic_algorithms(schedule == "")
        kind = "duplicates" if schedule == "duplicates" else "random"
        found = errors(call, kind, getattr(torch, dtype))
        good = max(found) <= selfcheck.TOLERANCE[getattr(torch, dtype)]
        failed += not good
        print("ok  " if good else "FAIL", name, *(f"{error:.1e}" for error in found), flush=True)
    print("executed:", *sorted(executed))
    return failed


if __name__ == "__main__":
    sys.exit(main())
