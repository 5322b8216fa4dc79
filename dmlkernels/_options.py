"""Options of losses as attributes: what each may be is said once, and checked whenever it is set.

    class Lifted(PairSettings):
        neg_margin: float = number(1.0)
        positive: str = choice("all", "all", "easy")

They are fields of a dataclass, whose constructor sets them, so that a schedule of margins is `loss.margin = 0.5`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from . import _checks

REQUIRED: Any = object()


class Option:
    """A checked attribute.

    Args:
        default: of the constructor; REQUIRED: none.
        check: called with the name of the loss, that of the option, the value and `arguments`; returns what is kept.
        optional: may be None, which stays None: the value then follows from other options, at each call.
    """

    def __init__(self, default: Any, check: Callable[..., Any], *arguments: Any, optional: bool = False) -> None:
        self.default, self.check, self.arguments, self.optional = default, check, arguments, optional

    def __set_name__(self, owner: type, name: str) -> None:
        # Not its own name: torch 2.11 compiles a look into `__dict__` for that as one at the attribute, and so on.
        self.name, self.kept = name, f"_{name}"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None and self.default is REQUIRED:
            raise AttributeError(f"{self.name} has no default")
        return self.default if instance is None else getattr(instance, self.kept)

    def __set__(self, instance: Any, value: Any) -> None:
        if not (self.optional and value is None):
            value = self.check(instance.op, self.name, value, *self.arguments)
        setattr(instance, self.kept, value)


class Fixed(Option):
    """What parameters or buffers are made by, once."""

    def __set__(self, instance: Any, value: Any) -> None:
        if hasattr(instance, self.kept):
            chosen = getattr(instance, self.kept)
            _checks.fail(instance.op, self.name, f"left at {chosen} once it is chosen", repr(value))
        super().__set__(instance, value)


def size(default: Any = REQUIRED, expected: str | None = None) -> Any:
    return Fixed(default, _checks.whole, 1, expected, optional=default is None)


def number(default: float | None) -> Any:
    return Option(default, _checks.number, optional=default is None)


def above_zero(default: float) -> Any:
    return Option(default, _checks.positive)


def not_negative(default: float | None) -> Any:
    return Option(default, _checks.not_negative, optional=default is None)


def whole(default: int | None, least: int = 1) -> Any:
    return Option(default, _checks.whole, least, optional=default is None)


def flag(default: bool) -> Any:
    return Option(default, _checks.flag)


def label() -> Any:
    return Option(None, _checks.label)


def _chosen(op: str, argument: str, value: str, choices: tuple[str, ...]) -> str:
    _checks.one_of(op, argument, value, choices)
    return value


def choice(default: str | None, *choices: str) -> Any:
    """One of the choices, or None where that is the default."""
    return Option(default, _chosen, choices, optional=default is None)


def options(loss: type) -> dict[str, Option]:
    """The options of a class by name, in the order of its constructor."""
    found = {k: v for owner in loss.__mro__ for k, v in vars(owner).items() if isinstance(v, Option)}
    order = [name for name in inspect.signature(loss).parameters if name in found]
    return {name: found[name] for name in dict.fromkeys([*order, *found])}


class Configured(nn.Module):
    """A module with options; `op` is what errors call it. They may be set before the constructor of a subclass ends."""

    op: str
    last_stats: dict[str, Any]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls.op = cls.__name__

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        module = super().__new__(cls)
        nn.Module.__init__(module)
        module.last_stats = {}
        return module

    def __setattr__(self, name: str, value: Any) -> None:
        # A parameter or a module would be registered, and never reach the option.
        if isinstance(value, (nn.Parameter, nn.Module)) and name in options(type(self)):
            options(type(self))[name].__set__(self, value)
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options(type(self)))
