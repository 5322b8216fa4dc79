"""`python -m dmlkernels info`: what is available here and why the rest is not, to paste into a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

import torch

from . import _backend, _diagnose
from ._version import __version__


def lines() -> Iterator[tuple[str, str]]:
    """Name and value of every fact."""
    yield "dmlkernels", __version__
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    yield "backend", f'"{_backend.get_backend()}", float32 products "{_backend.get_float32_precision()}"'
    available = {
        "native": {"cpu": _native_cpu, "cuda": _native_cuda},
        "triton": {"cpu": _triton, "cuda": _triton, "xpu": _triton},
    }
    for backend, devices in available.items():
        for device, describe in devices.items():
            there = device in _backend.loaded[backend]
            yield f"{backend} {device}", describe(device) if there else f"no: {_backend.missing[backend, device]}"
    if "cuda" not in _backend.loaded["native"] and (carried := _carried()):
        yield "cuda library", f"there, {carried}"
    yield from _gpus()
    for module in ("matplotlib", "PIL", "scipy", "tqdm", "timm"):
        yield module, "found" if importlib.util.find_spec(module) else "no"


def _native_cpu(device: str) -> str:
    from . import _C

    info = _C.build_info()
    built = f"{info['compiler']}, torch {info['torch_version']}"
    return f"yes, {_C.cpu_capability()} of {', '.join(info['cpu_isas'])} (built with {built})"


def _native_cuda(device: str) -> str:
    return f"yes, {_carried()}"


def _carried() -> str | None:
    """What the CUDA library was built for, whether it can be loaded here or not."""
    try:
        from . import _C
    except ImportError:
        return None
    info = _C.build_info()
    if not info["cuda"]:
        return None
    return f"for {', '.join(info['cuda_architectures'])} (built with CUDA {info['cuda_version']})"


def _triton(device: str) -> str:
    version = importlib.metadata.version("triton")
    note = ", interpreted: for tests" if device == "cpu" else ", on ROCm: untested" if torch.version.hip else ""
    return f"yes, Triton {version}{note}"


def _gpus() -> Iterator[tuple[str, str]]:
    """Every GPU that torch sees, and what the CUDA library has for it."""
    if torch.version.cuda is None:
        return
    if not torch.cuda.is_available():
        yield "gpu", "no: torch sees none here; nvidia-smi tells whether there is one and how new its driver is"
        return
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        name = f"{torch.cuda.get_device_name(index)}, {capability[0]}.{capability[1]}"
        if "cuda" in _backend.loaded["native"]:
            from . import _C

            architectures = _C.build_info()["cuda_architectures"]
            served = _diagnose.serves(capability, architectures)
            name += f": {served}" if served else f": no kernels, {_diagnose.unserved_gpu(capability, architectures)}"
        yield f"gpu {index}", name


def show() -> None:
    """Print them."""
    for name, value in lines():
        print(f"{name:<12} {value}")
