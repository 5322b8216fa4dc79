"""Checks the arguments of one call against the contract, where kernels are written in Python and of fakes.

csrc/common/contract.h says the same in the same words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ._contract import OPERATORS, Argument, Expression, Operator, subject


def _text(value: Any) -> str:
    """As C++ writes it too."""
    return f"'{value}'" if isinstance(value, str) else str(value)


def _dtype(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def compute(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


class _Call:
    """The arguments of one call against its operator's lines. Its sizes are known afterwards."""

    def __init__(self, operator: Operator, given: Mapping[str, Any]):
        self.operator, self.given = operator, given
        self.sizes = {a.size or a.name: given[a.name] for a in operator.arguments if a.type in ("int", "float")}
        self.first = next(a.name for a in operator.in_order if a.type == "Tensor")

    def fail(self, argument: str, expected: str, got: object, names: Sequence[str] = ()) -> None:
        known = ", ".join(f"{name}={self.sizes[name]}" for name in dict.fromkeys(names) if name in self.sizes)
        expected += f" with {known}" if known else ""
        raise ValueError(f"{subject(self.operator.name)}: {argument} must be {expected}, got {got}")

    def argument(self, a: Argument) -> None:
        value = self.given[a.name]
        if a.partners and (value is not None) != all(self.given[other] is not None for other in a.partners):
            what = "None" if value is None else "a tensor"
            self.fail(a.name, f"given with {' and '.join(a.partners)}, and only then", what)
        for other, excluding in a.excluded:
            if value is not None and self.given[other] == excluding:
                self.fail(a.name, f"None with {other} = {excluding}", "a tensor")
        if value is None:
            if a.without:
                self.sizes[a.without[0]] = self.sizes[a.without[1]]
        elif a.type == "Tensor":
            self.tensor(a, value)
        elif a.choices and value not in a.choices:
            self.fail(a.name, " or ".join(map(_text, a.choices)), _text(value))
        elif a.interval and not a.interval.holds(value, self.sizes):
            self.fail(a.name, f"in {a.interval.text}", _text(value), a.interval.names)
        elif a.type == "bool" and a.gradient_of and value and self.given[a.gradient_of] is None:
            self.fail(a.name, f"False without {a.gradient_of}", _text(value))

    def tensor(self, a: Argument, x: Any) -> None:
        assert a.shape is not None
        dims = a.shape.choose(self.given)
        known = dict(self.sizes)
        if len(x.shape) != len(dims.sizes) or not all(map(self.size, dims.sizes, x.shape)):
            names = [name for size in dims.sizes for name in size.names if name in known]
            self.fail(a.name, dims.text, tuple(x.shape), names)
        if len(x.shape) == 2 and x.shape[0] >= 2**31:
            self.fail(a.name, "of at most 2^31 - 1 rows", tuple(x.shape))
        if a.like:
            dtype = _dtype(self.given[a.like])
            expected = [dtype if a.dtype.startswith("like") else compute(dtype)]
            of = f" like {a.like}" if a.dtype.startswith("like") else f" for {a.like} of {dtype}"
        else:
            expected, of = a.dtype.split("|"), ""
        if _dtype(x) not in expected:
            *others, last = expected
            self.fail(a.name, f"{', '.join(others)} or {last}" if others else last + of, _dtype(x))
        if x.device != self.given[self.first].device:
            self.fail(a.name, f"on {self.given[self.first].device} like {self.first}", x.device)

    def size(self, expected: Expression, size: int) -> bool:
        """Whether a size is the expected one; at most one of its names is learnt from it."""
        unknown = [name for name in expected.names if name not in self.sizes]
        if not unknown:
            return bool(expected.value(self.sizes) == size)
        self.sizes[unknown[0]] = 1
        unit = expected.value(self.sizes)
        self.sizes[unknown[0]] = size // unit
        return bool(size % unit == 0)

    def numbers(self, a: Argument) -> None:
        """What a tensor holds, for its interval."""
        x = self.given[a.name]
        if x is None or a.interval is None or x.numel() == 0 or None in a.interval.ends(self.sizes):
            return
        low, high = (end.item() for end in x.aminmax())  # both are NaN if one number is
        worst = high if a.interval.begins(low, self.sizes) else low
        if not a.interval.holds(worst, self.sizes):
            self.fail(a.name, f"in {a.interval.text}", _text(worst), a.interval.names)


def check(operator: str, given: Mapping[str, Any], read: bool = False) -> dict[str, Any]:
    """The sizes that the arguments of a call agree on.

    Args:
        read: look at the numbers in CPU tensors too.

    Raises:
        ValueError: naming the operator, the argument, what was expected and what came.
    """
    checking = _Call(OPERATORS[operator], given)
    for a in checking.operator.in_order:
        checking.argument(a)
    for a in checking.operator.arguments if read else ():
        if a.type == "Tensor" and a.interval and given[a.name] is not None and given[a.name].device.type == "cpu":
            checking.numbers(a)
    return checking.sizes


def results(operator: str, given: Mapping[str, Any]) -> Iterator[tuple[Any, tuple[int, ...], str]]:
    """Of each result a tensor to make it from, its shape and its dtype; the arguments are checked."""
    sizes = check(operator, given)
    for result in OPERATORS[operator].results:
        assert result.shape is not None
        shape = tuple(size.value(sizes) for size in result.shape.choose(given).sizes)
        like, dtype = next(x for x in given.values() if hasattr(x, "dtype")), result.dtype
        if result.like:
            like = given[result.like]
            dtype = _dtype(like) if result.dtype.startswith("like") else compute(_dtype(like))
        yield like, shape, dtype
