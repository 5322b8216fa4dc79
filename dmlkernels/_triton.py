"""Registers the Triton kernels of `dmlkernels.triton_kernels`, which are imported when one is first called."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from . import _backend, _contract, _diagnose, _library, _verify


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors; Triton reads the same variable."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def load() -> None:
    """Put launchers behind the operators of `dmlkernels_triton`; note where there are none, and why."""
    why = _absent()
    cpu = "Triton takes CPU tensors only in its interpreter, for tests: set TRITON_INTERPRET=1 before Python starts"
    cuda = "this torch is a build without CUDA or ROCm"
    xpu = "the Triton kernels are for GPUs of NVIDIA and, untested, of AMD, whose tensors are cuda tensors"
    if interpreted():
        cuda = "TRITON_INTERPRET=1 is set, and the interpreter takes CPU tensors"
    for device, there, without in (
        ("cpu", interpreted(), cpu),
        ("cuda", (torch.version.cuda or torch.version.hip) is not None and not interpreted(), cuda),
        ("xpu", False, xpu),
    ):
        if why or not there:
            _backend.missing["triton", device] = why or without
            continue
        for operator in _contract.OPERATORS:
            _library.implement("dmlkernels_triton", operator, functools.partial(_launch, operator), device)
        _backend.loaded["triton"].add(device)


def _absent() -> str | None:
    """What keeps the kernels from running on any device."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if importlib.util.find_spec("dmlkernels.triton_kernels") is None:
        return "this copy of dmlkernels came without its triton_kernels"
    return None


def _launch(operator: str, *arguments: Any) -> Any:
    named = _contract.OPERATORS[operator].named(arguments)
    _verify.check(operator, named, read=True)
    launcher = _launcher(operator)
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    if device.type != "cuda":
        return launcher(**named)
    if why := _diagnose.unsupported_by_triton(device.index):
        raise RuntimeError(f'{operator}: backend "triton" is not available on this GPU: {why}')
    if torch.version.hip is not None and named.get("precision") == "tf32x3":
        raise RuntimeError(f"{operator}: {_diagnose.NO_TF32X3}")
    with torch.cuda.device(device):  # Triton launches on the current one
        return launcher(**named)


@functools.cache
def _launcher(operator: str) -> Callable[..., Any]:
    from .triton_kernels import MODULES  # type: ignore[import-not-found]  # it stands elsewhere in a clone

    module = importlib.import_module(f"dmlkernels.triton_kernels.{MODULES[operator.rpartition('_')[0]]}")
    return module.OPERATORS[operator]
