"""Loads the compiled libraries and defines every operator of `_contract`, once per backend namespace."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _backend, _diagnose, _verify
from ._contract import OPERATORS, SCHEMAS

_LIBRARY_DIR = Path(__file__).parent / "lib"
_libraries: dict[str, torch.library.Library] = {}
_autograd_kernels: dict[tuple[str, str], Callable] = {}  # of forward operators, by namespace and name


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


def define() -> None:
    """Define the operators of every backend."""
    for namespace in _backend.namespaces.values():
        _define(namespace)


def _define(namespace: str) -> None:
    """Define every operator in a namespace, with its fake, autograd and vmap; a backward stays in its namespace."""
    library = _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    overloads = {name: getattr(getattr(torch.ops, namespace), name).default for name in SCHEMAS}
    for name, overload in overloads.items():
        torch.library.register_fake(f"{namespace}::{name}", functools.partial(_fake, name), lib=library)
        torch.library.register_vmap(f"{namespace}::{name}", functools.partial(_one_by_one, overload), lib=library)
        if name.endswith("_bwd"):
            forward = name.replace("_bwd", "_fwd")
            for of, rule in ((forward, Gradient(forward, overload)), (name, NoGradient(name))):
                kernel = _autograd(of, overloads[of], rule)
                library.impl(of, kernel, "Autograd", with_keyset=True)
                if of == forward:
                    _autograd_kernels[namespace, of] = kernel


def add_backend(name: str, namespace: str) -> None:
    """Define a backend after import, for tests: who puts kernels behind its operators notes the devices as loaded."""
    _define(namespace)
    _backend.namespaces[name] = namespace
    _backend.loaded[name] = set()


def implement(namespace: str, operator: str, function: Callable, device: str) -> None:
    """Put a Python function with the operator's schema behind one operator, for tensors of one device type."""
    _libraries[namespace].impl(operator, function, device.upper())


def forward(namespace: str, operation: str) -> Callable:
    """The forward operator of an operation in a namespace, to be called at once.

    Its Autograd kernel itself where nothing else looks at the call before autograd does: of a few rows, a twentieth of
    the time of a loss is the dispatcher, which hands some thirty arguments back to Python.
    """
    name, kernel = f"{operation}_fwd", None
    if not (torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()):
        kernel = _autograd_kernels.get((namespace, name))
    return functools.partial(kernel, None) if kernel else getattr(getattr(torch.ops, namespace), name)


def _fake(operator: str, *values: Any) -> Tensor | tuple[Tensor, ...]:
    made = [
        like.new_empty(shape, dtype=getattr(torch, dtype))
        for like, shape, dtype in _verify.results(operator, OPERATORS[operator].named(values))
    ]
    return made[0] if len(made) == 1 else tuple(made)


def _autograd(name: str, operator: torch._ops.OpOverload, rule: Gradient | NoGradient) -> Callable:
    """The Autograd kernel of an operator.

    `torch.library.register_autograd` would give forward-mode derivatives of zero without a word, and fails inside
    `torch.func`. This is what it does otherwise. The keyset is None where `forward` called it past the dispatcher.
    """

    def below(keyset: torch._C.DispatchKeySet | None, values: tuple) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            if keyset is None:
                return operator(*values)
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *values)

    def forward(ctx: Any, keyset: torch._C.DispatchKeySet | None, *values: Any) -> Any:
        if torch._C._are_functorch_transforms_active():
            # Below are the outer transforms, which differentiate too; a Function has turned both modes off.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
                results = below(keyset, values)
        else:
            results = below(keyset, values)
        rule.save(ctx, values, results)
        return results

    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        return None, *rule.apply(ctx, grads)

    # Of a single level: the kernel of a level of `torch.func` is already below what `Function` itself would dispatch.
    node: Any = type(
        name, (_SingleLevelFunction,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

    def kernel(keyset: torch._C.DispatchKeySet | None, *values: Any) -> Any:
        if keyset is None and torch.overrides.has_torch_function(values):
            return operator(*values)  # a subclass or a mode, which looks at the call before autograd does
        if forward_ad._current_level >= 0 and any(isinstance(v, Tensor) and _has_tangent(v) for v in values):
            raise _no_forward_mode(name.rpartition("_")[0])
        if not (torch.is_grad_enabled() and torch._C._any_requires_grad(*values)):
            return below(keyset, values)
        if not torch._C._are_functorch_transforms_active():
            return node.apply(keyset, *values)
        with enable_single_level_autograd_function():
            return node.apply(keyset, *values)

    return kernel


def _has_tangent(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def _no_forward_mode(operation: str) -> RuntimeError:
    return RuntimeError(
        f"{operation}: there is no forward-mode derivative (jvp, jacfwd, hessian); for one use "
        "dmlkernels.use_backend('reference')"
    )


def _no_second(operation: str) -> RuntimeError:
    return RuntimeError(
        f"{operation}: the gradient cannot be differentiated again; for double backward use "
        "dmlkernels.use_backend('reference')"
    )


class NoGradient:
    """Of a backward operator that is called by itself: without a rule, its derivative would silently be zero."""

    def __init__(self, name: str):
        self.operation = name.removesuffix("_bwd")

    def save(self, ctx: Any, values: tuple, results: Any) -> None:
        pass

    def apply(self, ctx: Any, grads: tuple) -> tuple:
        raise _no_second(self.operation)


class _Once(torch.autograd.Function):
    """A copy of a gradient, of all that its call was given, which raises where it is differentiated again.

    The rule of the backward operator is not enough: what that is not told would have a second derivative of zero, and
    an extra gradient comes of no operator.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(operation: str, grad: Tensor, *given: Tensor) -> Tensor:
        return grad.clone()  # a view of a Function's could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.operation = inputs[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise _no_second(ctx.operation)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise _no_forward_mode(ctx.operation)


class ExtraGradient(NamedTuple):
    """The gradient of an argument that no backward operator gives."""

    argument: str
    by: tuple[str, ...]  # results of the forward that it needs beside what the backward operator is told
    rule: Callable[[Mapping[str, Any]], Tensor]


EXTRA_GRADIENTS: dict[str, ExtraGradient] = {}
"""By operation; filled where the mathematics of an operation stands."""


class Gradient:
    """Of a forward operator: keeps what its backward operator names, and calls it."""

    def __init__(self, name: str, backward: torch._ops.OpOverload):
        self.operation, self.backward = name.removesuffix("_fwd"), backward
        self.takes, self.gives = OPERATORS[name], OPERATORS[f"{self.operation}_bwd"]
        told = set(self.gives.names)
        self.outgoing = [result.gradient_of for result in self.gives.results]
        kept = [r for r in self.takes.results if r.name in told]
        self.flags = [r.shape.condition for r in kept if r.shape and r.shape.condition in self.takes.names]
        # Those that the backward operator is not told are kept for `_Once`.
        saved = [a for a in self.takes.arguments if a.name in told | {*self.outgoing, *self.flags}]
        self.tensors = [a.name for a in saved if a.type == "Tensor"] + [r.name for r in kept]
        self.options = [a.name for a in saved if a.type != "Tensor"]

    @functools.cached_property
    def places(self) -> Places:
        return Places.of(self)

    def save(self, ctx: Any, values: tuple, results: Any) -> None:
        known = (*values, *(results if isinstance(results, tuple) else (results,)))
        places = self.places
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*[known[k] for k in places.constant])
        ctx.save_for_backward(*[known[k] for k in places.tensors])
        ctx.options = [known[k] for k in places.options]
        ctx.shapes = [known[k].shape for k in places.differentiable]

    def apply(self, ctx: Any, grads: tuple) -> tuple:
        some = next((grad for grad in grads if grad is not None), None)
        if some is None:
            return (None,) * len(self.takes.names)
        places, needs = self.places, ctx.needs_input_grad[1:]  # the first is the keyset
        known = [*ctx.options, *ctx.saved_tensors]
        self._check_kept(known)
        zeros = None  # one for all that have its shape
        for k, shape in zip(places.incoming, ctx.shapes, strict=True):
            if grads[k] is None and (zeros is None or zeros.shape != shape):
                zeros = some.new_zeros(shape)
            known.append(zeros if grads[k] is None else grads[k].contiguous())
        known.extend(known[given] is not None and needs[k] for given, k in places.needed)
        found: list[Tensor | None] = [None] * len(needs)
        if any(needs[k] for k in places.outgoing):
            results = self._backward([known[k] for k in places.told])
            for k, grad in zip(places.outgoing, results if isinstance(results, tuple) else (results,), strict=True):
                found[k] = grad if needs[k] else None
        if places.extra is not None and needs[places.extra]:
            found[places.extra] = EXTRA_GRADIENTS[self.operation].rule(dict(zip(places.names, known, strict=True)))
        if torch.is_grad_enabled():
            given = [x for x in known if isinstance(x, Tensor)]
            found = [None if grad is None else _Once.apply(self.operation, grad, *given) for grad in found]
        return tuple(found)

    def _backward(self, arguments: list) -> Any:
        if torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            return self.backward(*arguments)
        # The operator's Autograd kernel would only hand on the arguments, of which there are many, through Python.
        with torch._C._AutoDispatchBelowAutograd():
            return self.backward(*arguments)

    def _check_kept(self, known: list) -> None:
        for flag, k in zip(self.flags, self.places.flags, strict=True):
            if not known[k]:
                raise RuntimeError(
                    f"{self.operation}: the forward kept nothing to differentiate by, its {flag} was False"
                )


class Places(NamedTuple):
    """Where a `Gradient` finds what it knows by name, worked out once: each call of a few rows would wait for it."""

    # among the arguments and results of the forward
    constant: list[int]
    tensors: list[int]
    options: list[int]
    differentiable: list[int]
    # among the results of the forward, and so among the incoming gradients
    incoming: list[int]
    # among what is known in the backward
    names: list[str]
    flags: list[int]
    told: list[int]
    needed: list[tuple[int, int]]  # with the number of the argument
    # among the arguments of the forward
    outgoing: list[int]
    extra: int | None

    @staticmethod
    def of(rule: Gradient) -> Places:
        arguments, results = rule.takes.names, [r.name for r in rule.takes.results]
        forward = {name: k for k, name in enumerate((*arguments, *results))}
        incoming = {a.name: a.gradient_of for a in rule.gives.arguments if a.gradient_of and a.type == "Tensor"}
        needed = {a.name: a.gradient_of for a in rule.gives.arguments if a.gradient_of and a.type == "bool"}
        extra = EXTRA_GRADIENTS.get(rule.operation)
        tensors = [*rule.tensors, *(extra.by if extra else ())]
        names = [*rule.options, *tensors, *incoming, *needed]
        known = {name: k for k, name in enumerate(names)}
        return Places(
            constant=[forward[name] for name in results if name not in incoming.values()],
            tensors=[forward[name] for name in tensors],
            options=[forward[name] for name in rule.options],
            differentiable=[forward[name] for name in incoming.values()],
            incoming=[results.index(name) for name in incoming.values()],
            names=names,
            flags=[known[name] for name in rule.flags],
            told=[known[name] for name in rule.gives.names],
            needed=[(known[name], forward[name]) for name in needed.values()],
            outgoing=[forward[name] for name in rule.outgoing],
            extra=forward[extra.argument] if extra else None,
        )


def _one_by_one(operator: Callable, info: Any, in_dims: tuple, *values: Any) -> tuple:
    """vmap of independent problems: one kernel call each, since a kernel already fills the machine."""
    slices = []
    for b in range(info.batch_size):
        chosen = (v if d is None else v.select(d, b) for v, d in zip(values, in_dims, strict=True))
        slices.append(operator(*chosen))
    if isinstance(slices[0], Tensor):
        return torch.stack(slices), 0
    return tuple(torch.stack(outputs) for outputs in zip(*slices, strict=True)), (0,) * len(slices[0])
