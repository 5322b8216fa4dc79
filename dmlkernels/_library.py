"""Loads the compiled libraries and defines every operator of `_schemas`, once per backend namespace."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from . import _backend, _diagnose
from ._schemas import SCHEMAS

_LIBRARY_DIR = Path(__file__).parent / "lib"
_libraries: dict[str, torch.library.Library] = {}
_registrations: list[Callable[[str], None]] = []  # what `register` does to a namespace, for those that come later


def load_native() -> None:
    """Load libdmlkernels_cpu.so, and libdmlkernels_cuda.so where torch has CUDA; note what is missing, and why."""
    for device in ("cpu", "cuda"):
        why = _load(device)
        if why is None:
            _backend.loaded["native"].add(device)
        else:
            _backend.missing["native", device] = why
    if "cpu" not in _backend.loaded["native"]:
        warnings.warn(
            "dmlkernels: the native CPU kernels are not loaded, CPU tensors use the plain PyTorch reference, with N×N "
            f"memory ({_backend.missing['native', 'cpu']})",
            stacklevel=4,
        )


def _load(device: str) -> str | None:
    """Load the library of a device; or else why there are no kernels for it."""
    if device == "cuda" and torch.version.cuda is None:
        return _diagnose.no_cuda_in_torch(torch.__version__)
    path = _LIBRARY_DIR / f"libdmlkernels_{device}.so"
    if not path.exists():
        return _diagnose.not_built(path.name)
    if why := _diagnose.other_processor(path):
        return why
    if device == "cuda" and (why := _diagnose.other_cuda(_built_with_cuda(), str(torch.version.cuda))):
        return why
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load here ({error}); {_diagnose.FROM_SOURCE}"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    lacking = [name for name in SCHEMAS if not has_kernel(f"dmlkernels::{name}", device.upper())]
    return f"{path.name} has no kernel yet for {', '.join(lacking)}" if lacking else None


def _built_with_cuda() -> str:
    """The version of nvcc; empty where there is no module to ask."""
    try:
        from . import _C
    except ImportError:
        return ""
    return _C.build_info()["cuda_version"]


def define(namespace: str) -> None:
    """Define every schema in a namespace; the fakes, autograd and vmap of `ops` follow through `register`."""
    library = _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))


def add_backend(name: str, namespace: str) -> None:
    """Define a backend after import, for tests: who puts kernels behind its operators notes the devices as loaded."""
    define(namespace)
    for in_namespace in _registrations:
        in_namespace(namespace)
    _backend.namespaces[name] = namespace
    _backend.loaded[name] = set()


def implement(namespace: str, operator: str, function: Callable, device: str) -> None:
    """Put a Python function with the operator's schema behind one operator, for tensors of one device type."""
    _libraries[namespace].impl(operator, function, device.upper())


def register(
    op: str,
    *,
    fake_fwd: Callable,
    fake_bwd: Callable | None = None,
    setup_context: Callable | None = None,
    backward: Callable[..., Callable] | None = None,
) -> None:
    """Fake, autograd and vmap of `<op>_fwd` and `<op>_bwd` in every namespace.

    Args:
        fake_bwd, setup_context, backward: for an operator whose schemas have a backward, and only for one.
        backward: called with the namespace's `<op>_bwd`, returns the backward formula, so that a backward stays in the
            namespace of its forward.
    """
    given = [part is not None for part in (fake_bwd, setup_context, backward)]
    if given != [f"{op}_bwd" in SCHEMAS] * 3:
        raise TypeError(
            f"{op}: fake_bwd, setup_context and backward must be given where there is {op}_bwd, and only there"
        )

    def in_namespace(namespace: str) -> None:
        library, operators = _libraries[namespace], getattr(torch.ops, namespace)
        forward_name, backward_name = f"{namespace}::{op}_fwd", f"{namespace}::{op}_bwd"
        forward_op = getattr(operators, f"{op}_fwd")
        torch.library.register_fake(forward_name, fake_fwd, lib=library)
        torch.library.register_vmap(forward_name, functools.partial(_one_by_one, forward_op), lib=library)
        if fake_bwd is None or backward is None:
            return
        formula = backward(getattr(operators, f"{op}_bwd"))
        torch.library.register_fake(backward_name, fake_bwd, lib=library)
        torch.library.register_autograd(forward_name, formula, setup_context=setup_context, lib=library)
        # Without a formula of its own, a second derivative would silently be zero.
        torch.library.register_autograd(backward_name, functools.partial(_no_double_backward, op), lib=library)

    _registrations.append(in_namespace)
    for namespace in _libraries:
        in_namespace(namespace)


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
