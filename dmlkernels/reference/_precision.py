"""Autocast stays outside of the references: a Gram matrix stored in bfloat16 may not even be positive definite."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def without_autocast(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function of a tensor and other arguments, computed in the dtypes that it asks for."""

    @functools.wraps(function)
    def wrapped(x: Tensor, *arguments: Any, **named: Any) -> Result:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments, **named)

    return wrapped
