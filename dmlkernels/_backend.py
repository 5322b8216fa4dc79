"""Which backend runs an operation: a plain module attribute, so that `torch.compile` guards on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch

from . import _diagnose
from ._autotable import FASTEST

BACKENDS = ("auto", "native", "triton", "reference")
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")

# Backend -> operator namespace. Tests add their own (a backend is a namespace with the same schemas).
namespaces = {"native": "dmlkernels", "triton": "dmlkernels_triton"}
# Device types for which a backend has kernels loaded, and one sentence for each that it has not.
loaded: dict[str, set[str]] = {"native": set(), "triton": set()}
missing: dict[tuple[str, str], str] = {}

_backend = "auto"
_precision = "ieee"


def set_backend(name: Literal["auto", "native", "triton", "reference"]) -> None:
    """Choose the backend of every later call: "auto", "native" (C++), "triton" or "reference" (plain PyTorch).

    Raises:
        ValueError: if the name is unknown. A known backend that is not available here raises at the call that needs it,
            because that depends on the device of the tensors.
    """
    global _backend
    if name not in BACKENDS and name not in namespaces:
        raise ValueError(f"set_backend: name must be one of {', '.join(BACKENDS)}, got {name!r}")
    _backend = name


def get_backend() -> str:
    """The name that `set_backend`, `use_backend` or the environment variable DMLKERNELS_BACKEND gave."""
    return _backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """`set_backend` for the length of a with-block. A backward always runs on the backend of its forward.

    The backend is the process's: every thread sees the switch. torch.compile guards on a module attribute, but neither
    on a thread's own one, whose switch a compiled function would not notice, nor can it trace a ContextVar.
    """
    previous = _backend
    set_backend(name)  # type: ignore[arg-type]
    try:
        yield
    finally:
        set_backend(previous)  # type: ignore[arg-type]


def set_float32_precision(precision: Literal["ieee", "tf32x3", "tf32", "bf16"]) -> None:
    """Precision of the inner products of float32 inputs; "ieee" (default) is float32-accurate.

    The CPU kernels compute in float32 whatever is asked: every setting is a lower bound of the accuracy.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"set_float32_precision: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    _precision = precision


def get_float32_precision() -> str:
    """The setting of `set_float32_precision`."""
    return _precision


def namespace(op: str, device: torch.device) -> str | None:
    """Operator namespace that runs `op` on `device`; None for the reference.

    Raises:
        RuntimeError: if the backend that was asked for is not available for the device; nothing falls back in silence.
    """
    if device.type == "meta":
        return namespaces["native"]  # shapes alone, which are the same in every namespace
    if _backend == "reference":
        return None
    if _backend == "auto":
        name = _fastest_on_gpu(op, device.index) if device.type == "cuda" else "native"
        return namespaces[name] if device.type in loaded[name] else None
    if device.type in loaded.get(_backend, ()):
        return namespaces[_backend]
    why = missing.get((_backend, device.type), f"this version has no {_backend} kernels for {device.type} tensors")
    raise RuntimeError(
        f'{op}: backend "{_backend}" is not available for {device.type} tensors: {why}. '
        'Call dmlkernels.set_backend("auto") or "reference", or see `python -m dmlkernels info`.'
    )


def _fastest_on_gpu(op: str, index: int) -> str:
    """native or triton, as `_autotable` has it for this GPU; otherwise native where it is loaded."""
    usable = [name for name in ("native", "triton") if "cuda" in loaded[name]]
    if not torch.cuda.is_available():  # fakes of CUDA tensors, which are traced where there is no GPU too
        return usable[0] if usable else "native"
    if "triton" in usable and _diagnose.unsupported_by_triton(index):
        usable.remove("triton")
    listed = FASTEST.get(torch.cuda.get_device_name(index), {}).get(op)
    return listed if listed in usable else usable[0] if usable else "native"


# What torch.compiler.assume_constant_result sets: a graph asks once. Calling it would import the whole compiler.
_fastest_on_gpu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def read_environment() -> None:
    """Take DMLKERNELS_BACKEND once, at import."""
    name = os.environ.get("DMLKERNELS_BACKEND", "auto")
    if name not in BACKENDS:
        raise ValueError(
            f"the environment variable DMLKERNELS_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}"
        )
    set_backend(name)  # type: ignore[arg-type]
