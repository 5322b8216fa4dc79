"""A good call of every operator, made from its contract."""

from __future__ import annotations

from typing import Any

import torch
from support.targets import Target
from torch import Tensor

from dmlkernels import _library
from dmlkernels._contract import OPERATORS, Argument

FORWARDS = [name for name in OPERATORS if name.endswith("_fwd")]
BACKWARDS = [name for name in OPERATORS if name.endswith("_bwd")]

# Sizes differ, so that one that stands for another is seen.
_SIZES = {"M": 6, "N": 5, "D": 4, "k": 6, "S": 2, "C": 3, "B": 2}
_NUMBERS = {"n": 3, "centers_per_class": 2, "nonzero_loss_cutoff": 1.4, "neg_scale": 2.0}
_CHOICES = {"pos_term": "softplus", "neg_term": "hinge"}


def arguments(operator: str, kernel: Target, dtype: torch.dtype = torch.float32, reference: bool = True) -> dict:
    """Of a forward; of a backward with what its forward gave.

    Args:
        kernel: whose forward is called.
        reference: with every optional tensor, and every number that is a size.
    """
    if operator.endswith("_bwd"):
        forward = operator.replace("_bwd", "_fwd")
        return of_backward(forward, kernel, arguments(forward, kernel, dtype, reference))
    generator = torch.Generator().manual_seed(0)
    sizes = _SIZES | ({"n": 3} if "n" in OPERATORS[operator].names else {"n": 4}) | _NUMBERS
    values = {a.name: _value(a, sizes, dtype, reference, generator) for a in OPERATORS[operator].arguments}
    return {name: v.to(kernel.device) if isinstance(v, Tensor) else v for name, v in values.items()}


def of_backward(forward: str, kernel: Target, known: dict) -> dict:
    """The arguments of a backward after its forward with the known ones."""
    results = getattr(kernel.operators, forward)(**known)
    results = results if isinstance(results, tuple) else (results,)
    known = known | dict(zip((r.name for r in OPERATORS[forward].results), results, strict=True))
    backward = OPERATORS[forward.replace("_fwd", "_bwd")]
    for a in backward.arguments:
        if a.gradient_of and a.type == "Tensor":
            known[a.name] = _weights(known[a.gradient_of])
        elif a.gradient_of:
            known[a.name] = known[a.gradient_of] is not None
    return {name: known[name] for name in backward.names}


def _weights(x: Tensor) -> Tensor:
    """Of each number of a result, for one number that depends on all."""
    return torch.linspace(0.5, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape)


def _value(a: Argument, sizes: dict, dtype: torch.dtype, reference: bool, generator: torch.Generator) -> Any:
    if a.type == "Tensor":
        return None if a.optional and not reference else _tensor(a, sizes, dtype, generator)
    if a.optional:
        return sizes[a.size] if a.size and reference else None
    if a.type == "int":
        return _NUMBERS[a.name]
    if a.type == "float":
        return _NUMBERS.get(a.name, 0.5)
    if a.choices:
        return _CHOICES.get(a.name, a.choices[0])
    return a.name not in ("check_finite", "soft", "weight_grad")


def _tensor(a: Argument, sizes: dict, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    assert a.shape is not None
    shape = [size.value(sizes) for size in a.shape.dims.sizes]
    if a.dtype == "int64":
        return torch.arange(shape[0]) // 2
    if a.interval:
        return torch.rand(shape, generator=generator, dtype=torch.float64)
    summed = a.dtype.startswith("compute") and dtype != torch.float64
    x = torch.randn(shape, generator=generator, dtype=torch.float32 if summed else dtype)
    return x @ x.mT + torch.eye(shape[1], dtype=dtype) if a.name == "A" else x


def tensors(known: dict) -> list[str]:
    """Names of the arguments that have a gradient by their dtype."""
    return [name for name, v in known.items() if isinstance(v, Tensor) and v.is_floating_point()]


def differentiable(forward: str) -> list[str]:
    """Names of the arguments of a forward that there is a gradient of."""
    backward = OPERATORS.get(forward.replace("_fwd", "_bwd"))
    extra = _library.EXTRA_GRADIENTS.get(forward.removesuffix("_fwd"))
    of_backward = [r.gradient_of for r in backward.results] if backward else []
    return [*of_backward, *([extra.argument] if extra else [])]


def value(forward: str, kernel: Target, known: dict) -> Tensor:
    """One number that depends on every differentiable result of a forward."""
    results = getattr(kernel.operators, forward)(**known)
    results = results if isinstance(results, tuple) else (results,)
    of = {a.gradient_of for a in OPERATORS[forward.replace("_fwd", "_bwd")].arguments}
    total = torch.zeros((), dtype=results[0].dtype, device=kernel.device)
    for line, x in zip(OPERATORS[forward].results, results, strict=True):
        if line.name in of:
            total = total + torch.where(x.isfinite(), _weights(x) * x, 0).sum()
    return total
