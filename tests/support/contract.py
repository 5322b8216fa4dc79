"""What every operator owes its callers, as checks that each test file applies to its own operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from support import settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dmlkernels.testing import Outcome, evaluate

FLOATS = [torch.float64, torch.float32]
FLOAT_IDS = ["float64", "float32"]

# Views of a (rows, D) tensor that a kernel reading plain rows would get wrong: what lies between is NaN.
VIEWS = {
    "transposed": lambda x: x.t().contiguous().t(),
    "columns": lambda x: torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : x.shape[1]],
    "every_other_column": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], 2)[:, :, 0],
    "every_other_row": lambda x: torch.stack([x, torch.full_like(x, torch.nan)], 1)[:, 0],
    "offset": lambda x: torch.cat([torch.full_like(x[:1], torch.nan), x])[1:],
}


def thinned(values: Iterable[Any], *kept: Any) -> list[Any]:
    """The same parameters, all but the kept ones marked `large`: enough of a sweep for a backend that is emulated."""

    def marked(value: Any) -> Any:
        values = value if isinstance(value, tuple) else (value,)
        return value if value in kept else pytest.param(*values, marks=pytest.mark.large)

    missing = [value for value in kept if value not in (values := list(values))]
    assert not missing, missing
    return [marked(value) for value in values]


def strided(labels: Tensor) -> Tensor:
    """The same labels, every other element of a buffer."""
    return torch.stack([labels, labels + 1], 1)[:, 0]


def assert_close(a: Outcome, b: Outcome, factor: float = 64.0) -> None:
    """Two results of one backend that differ only in the order of rounding."""
    eps = torch.finfo(a.value.dtype).eps
    torch.testing.assert_close(a.value, b.value, rtol=factor * eps, atol=factor * eps, equal_nan=True)
    for p, q in zip(a.grads, b.grads, strict=True):
        size = float(torch.linalg.vector_norm(q.double(), dim=1).max()) if q.numel() else 0.0
        torch.testing.assert_close(p, q, rtol=0, atol=factor * torch.finfo(q.dtype).eps * (1 + size), equal_nan=True)


def assert_identical(a: Outcome, b: Outcome) -> None:
    assert torch.equal(a.value, b.value)
    for p, q in zip(a.grads, b.grads, strict=True):
        assert torch.equal(p, q)


def check_operator(operator: Any, arguments: Iterable[Any]) -> None:
    """opcheck: schema, fake, autograd, dynamic shapes."""
    results = torch.library.opcheck(operator, tuple(arguments))
    assert set(results.values()) == {"SUCCESS"}, results


def check_compiled(function: Callable[..., Tensor], tensors: Sequence[Tensor], backend: str = "aot_eager") -> None:
    """The compiled function, forward and backward, in one graph, is the function."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    for inputs in (tensors, [t.flip(0) for t in tensors]):
        (assert_identical if backend == "aot_eager" else assert_close)(
            evaluate(compiled, inputs), evaluate(function, inputs)
        )


def check_deterministic(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
    """Twice the same bits, and the same bits with one thread and with two."""
    with settings.changed("number of threads", 1):
        one, again = evaluate(function, tensors), evaluate(function, tensors)
    with settings.changed("number of threads", 2):
        two = evaluate(function, tensors)
    assert_identical(one, again)
    assert_identical(one, two)


def check_no_double_backward(function: Callable[..., Tensor], x: Tensor) -> None:
    leaf = x.detach().clone().requires_grad_()
    grad = torch.autograd.grad(function(leaf).sum(), leaf, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        grad.square().sum().backward()


def check_outside(function: Callable[..., Any], arguments: tuple, number: int, classes: int, backend: Any) -> None:
    """A label that is no class is named; where nobody waits for the kernels the loss is NaN."""
    if backend.asynchronous:
        assert bool(function(*arguments).isnan())
        return
    with pytest.raises(ValueError) as caught:
        function(*arguments)
    assert str(caught.value) == f"{function.__name__}: labels must be in [0, C) with C={classes}, got {number}"


def check_messages(function: Callable[..., Any], good: dict, cases: Iterable[tuple[dict, str]]) -> None:
    """Each case changes some arguments of a good call and must raise a ValueError that reads exactly as given."""
    function(**good)
    for change, words in cases:
        with pytest.raises(ValueError) as caught:
            function(**{**good, **change})
        assert str(caught.value) == words


class Recorder(TorchDispatchMode):
    """Names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
