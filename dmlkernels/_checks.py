"""Checks of the public functions: each error names the function, the argument, what was expected and what came."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from . import _backend

NO_NAMES: Mapping[str, str] = MappingProxyType({})


class PairInputs(NamedTuple):
    """The pair arguments as the operators take them: one dtype, int64 labels and ids."""

    embeddings: Tensor  # (M, D)
    labels: Tensor  # (M,)
    ref_emb: Tensor | None  # (N, D)
    ref_labels: Tensor | None  # (N,)
    ids: Tensor | None  # (M,)
    ref_ids: Tensor | None  # (N,)
    ignore_index: int | None
    normalize: bool


def fail(op: str, argument: str, expected: str, got: object) -> None:
    raise ValueError(f"{op}: {argument} must be {expected}, got {got}")


def renamed(op: str, operator: Callable[..., Any], *arguments: Any, names: Mapping[str, str] = NO_NAMES) -> Any:
    """What the operator gives; what it refuses is said in the name of the public function `op`.

    Args:
        names: what the function calls arguments that have other names there.
    """
    try:
        return operator(*arguments)
    except ValueError as error:
        name, must, what = str(error).partition(": ")[2].partition(" must ")
        raise ValueError(f"{op}: {names.get(name, name)}{must}{what}") from None


def one_of(op: str, argument: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        fail(op, argument, " or ".join(repr(c) for c in choices), repr(value))


def _finite_number(value: object) -> bool:
    """Python's and numpy's numbers alike; a bool is none, and a tensor would be read once and never differentiated."""
    real = isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)
    return real and bool(abs(value) <= sys.float_info.max)  # type: ignore[arg-type]


def number(op: str, argument: str, value: float) -> float:
    """A finite number."""
    if not _finite_number(value):
        fail(op, argument, "a finite number", repr(value))
    return float(value)


def positive(op: str, argument: str, value: float) -> float:
    """A finite number above 0."""
    if not _finite_number(value) or not value > 0:
        fail(op, argument, "a positive number", repr(value))
    return float(value)


def not_negative(op: str, argument: str, value: float) -> float:
    """A finite number of at least 0."""
    if not _finite_number(value) or not value >= 0:
        fail(op, argument, "a number of at least 0", repr(value))
    return float(value)


def is_integer(value: object) -> TypeGuard[int]:
    """Python's and numpy's integers alike; a bool is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def integer(op: str, argument: str, value: int) -> int:
    """An integer, Python's or numpy's."""
    if not is_integer(value):
        fail(op, argument, "an integer", repr(value))
    return int(value)


def whole(op: str, argument: str, value: int, least: int, expected: str | None = None) -> int:
    """An integer of at least so much."""
    if not is_integer(value) or value < least:
        fail(op, argument, expected or f"an integer of at least {least}", repr(value))
    return int(value)


def label(op: str, argument: str, value: int | None) -> int | None:
    """What may stand for no label."""
    if value is None:
        return None
    if not is_integer(value) or not -(2**63) <= value < 2**63:
        fail(op, argument, "an int or None", repr(value))
    return int(value)


def flag(op: str, argument: str, value: bool) -> bool:
    """True or False."""
    if type(value) is not bool:
        fail(op, argument, "True or False", repr(value))
    return value


def floating(op: str, argument: str, value: Tensor) -> None:
    if value.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        fail(op, argument, "float64, float32, bfloat16 or float16", value.dtype)


def matrix(op: str, argument: str, value: object, columns: str = "(M, D)") -> Tensor:
    """A floating (rows, D) tensor."""
    if not isinstance(value, Tensor):
        fail(op, argument, f"a {columns} tensor", type(value).__name__)
    assert isinstance(value, Tensor)
    if value.ndim != 2:
        fail(op, argument, columns, tuple(value.shape))
    floating(op, argument, value)
    if value.layout != torch.strided:
        fail(op, argument, "a dense tensor", value.layout)
    return value


def same_width(op: str, x: Tensor, y: Tensor, argument: str, columns: str) -> None:
    if y.shape[1] != x.shape[1]:
        fail(op, argument, f"{columns} with D={x.shape[1]}", tuple(y.shape))
    if y.device != x.device:
        fail(op, argument, f"on {x.device} like the first argument", y.device)


def integers(op: str, argument: str, value: object, like: Tensor, rows: str) -> Tensor:
    """A (rows,) integer or bool tensor, as int64."""
    if not isinstance(value, Tensor):
        fail(op, argument, f"a ({rows},) integer tensor", type(value).__name__)
    assert isinstance(value, Tensor)
    if value.is_floating_point() or value.is_complex():
        fail(op, argument, f"a ({rows},) tensor of integers (one class per row)", value.dtype)
    if value.ndim != 1 or value.shape[0] != like.shape[0]:
        fail(op, argument, f"({rows},) with {rows}={like.shape[0]}", tuple(value.shape))
    if value.device != like.device:
        fail(op, argument, f"on {like.device} like the embeddings", value.device)
    return value.to(torch.int64)


def readable(x: Tensor) -> bool:
    """Whether the numbers of a tensor can be looked at: on a CPU, where nobody waits, and not in a graph."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def some_class(op: str, labels: Tensor, classes: int, argument: str = "labels") -> None:
    """C > 0 where there are labels; that these lie in [0, C) an operator checks on a CPU, elsewhere it gives NaN."""
    if classes == 0 and labels.shape[0] > 0:
        fail(op, argument, "in [0, C) with C=0", f"{labels.shape[0]} labels")


def class_labels(op: str, labels: Tensor, classes: int, argument: str = "labels") -> None:
    """Every label in [0, C), where no operator checks. On a GPU, which is not waited for, the result is NaN."""
    some_class(op, labels, classes, argument)
    if labels.shape[0] == 0 or not readable(labels):
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= classes:
        fail(op, argument, f"in [0, C) with C={classes}", low if low < 0 else high)


def pair_inputs(
    op: str,
    embeddings: object,
    labels: object,
    ref_emb: object = None,
    ref_labels: object = None,
    ids: object = None,
    ref_ids: object = None,
    ignore_index: int | None = None,
    normalize: bool = True,
) -> PairInputs:
    """Check and promote what every pair function takes (DESIGN of the public API: self mode without `ref_emb`)."""
    x = matrix(op, "embeddings", embeddings)
    y = integers(op, "labels", labels, x, "M")
    query_ids = None if ids is None else integers(op, "ids", ids, x, "M")
    ignore_index, normalize = label(op, "ignore_index", ignore_index), flag(op, "normalize", normalize)
    if ref_emb is None:
        for name, value in (("ref_labels", ref_labels), ("ref_ids", ref_ids)):
            if value is not None:
                fail(op, name, "None without ref_emb", "a tensor")
        return PairInputs(x, y, None, None, query_ids, None, ignore_index, normalize)

    g = matrix(op, "ref_emb", ref_emb, "(N, D)")
    same_width(op, x, g, "ref_emb", "(N, D)")
    if ref_labels is None:
        fail(op, "ref_labels", "given with ref_emb", None)
    h = integers(op, "ref_labels", ref_labels, g, "N")
    if (ids is None) != (ref_ids is None):
        fail(op, "ref_ids" if ref_ids is None else "ids", "given together with the other one in reference mode", None)
    gallery_ids = None if ref_ids is None else integers(op, "ref_ids", ref_ids, g, "N")
    common = torch.promote_types(x.dtype, g.dtype)
    return PairInputs(x.to(common), y, g.to(common), h, query_ids, gallery_ids, ignore_index, normalize)


def pair_namespace(op: str, inputs: PairInputs, check_finite: bool) -> str | None:
    """`_backend.namespace` for checked inputs; with `check_finite`, first raise for NaN or Inf in rows that count.

    A compiled graph cannot branch on data: there the operator itself checks.
    """
    namespace = _backend.namespace(op, inputs.embeddings.device)
    if check_finite and (namespace is None or not torch.compiler.is_compiling()):
        _finite(op, inputs)
    return namespace


def _finite(op: str, inputs: PairInputs) -> None:
    for x, labels in ((inputs.embeddings, inputs.labels), (inputs.ref_emb, inputs.ref_labels)):
        if x is None or labels is None:
            continue
        good = torch.isfinite(x).all(1)
        if inputs.ignore_index is not None:
            good = good | (labels == inputs.ignore_index)
        if not bool(good.all()):
            raise ValueError(f"{op}: embeddings and ref_emb must be finite (check_finite=True), got NaN or Inf")
