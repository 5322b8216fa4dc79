"""Loads the compiled libraries and defines every operator of `_schemas`, once per backend namespace."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import _backend
from ._schemas import SCHEMAS

_LIBRARY_DIR = Path(__file__).parent / "lib"
_libraries: dict[str, torch.library.Library] = {}


def load_native() -> None:
    """Load libdmlkernels_cpu.so, and libdmlkernels_cuda.so where torch has CUDA; note what is missing, and why."""
    _load("cpu", "build it with a C++ compiler: pip install -e . --no-build-isolation")
    if torch.version.cuda is not None:
        _load("cuda", "rebuild with DMLKERNELS_CUDA=on and nvcc on the PATH")
    else:
        _backend.missing["native", "cuda"] = "this torch is a build without CUDA"
    if "cpu" not in _backend.loaded["native"]:
        warnings.warn(
            "dmlkernels: the native CPU kernels are not loaded, CPU tensors use the plain PyTorch reference, with N×N "
            f"memory ({_backend.missing['native', 'cpu']})",
            stacklevel=4,
        )


def _load(device: str, remedy: str) -> None:
    path = _LIBRARY_DIR / f"libdmlkernels_{device}.so"
    if not path.exists():
        _backend.missing["native", device] = f"{path.name} was not built; {remedy}"
        return
    try:
        torch.ops.load_library(path)
    except OSError as error:
        _backend.missing["native", device] = f"{path.name} does not load here ({error}); {remedy}"
        return
    if device == "cuda":
        _backend.missing["native", device] = "this version has no CUDA kernels yet"
        return
    _backend.loaded["native"].add(device)


def define(namespace: str) -> None:
    """Define every schema in a namespace; the fakes, autograd and vmap of `ops` follow through `register`."""
    library = _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))


def implement(namespace: str, operator: str, function: Callable, device: str) -> None:
    """Put a Python function with the operator's schema behind one operator, for tensors of one device type."""
    _libraries[namespace].impl(operator, function, device.upper())


def register(
    op: str,
    *,
    fake_fwd: Callable,
    fake_bwd: Callable,
    setup_context: Callable,
    backward: Callable[..., Callable],
) -> None:
    """Fake, autograd and vmap of `<op>_fwd` and `<op>_bwd` in every namespace.

    Args:
        backward: called with the namespace's `<op>_bwd`, returns the backward formula, so that a backward stays in the
            namespace of its forward.
    """
    for namespace, library in _libraries.items():
        forward_name, backward_name = f"{namespace}::{op}_fwd", f"{namespace}::{op}_bwd"
        operators = getattr(torch.ops, namespace)
        forward_op, backward_op = getattr(operators, f"{op}_fwd"), getattr(operators, f"{op}_bwd")
        torch.library.register_fake(forward_name, fake_fwd, lib=library)
        torch.library.register_fake(backward_name, fake_bwd, lib=library)
        torch.library.register_autograd(forward_name, backward(backward_op), setup_context=setup_context, lib=library)
        # Without a formula of its own, a second derivative would silently be zero.
        torch.library.register_autograd(backward_name, functools.partial(_no_double_backward, op), lib=library)
        torch.library.register_vmap(forward_name, functools.partial(_one_by_one, forward_op), lib=library)


def _no_double_backward(op: str, ctx: object, *grads: object) -> None:
    raise RuntimeError(
        f"{op}: the gradient cannot be differentiated again; for double backward use "
        "dmlkernels.use_backend('reference')"
    )


def _one_by_one(operator: Callable, info: object, in_dims: tuple, *args: object) -> tuple:
    """vmap of independent problems: one kernel call each, since a kernel already fills the machine."""
    size = info.batch_size  # type: ignore[attr-defined]
    slices = []
    for b in range(size):
        chosen = (a if d is None else a.select(d, b) for a, d in zip(args, in_dims, strict=True))  # type: ignore[attr-defined]
        slices.append(operator(*chosen))
    if isinstance(slices[0], torch.Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True)), (0,) * len(slices[0])
