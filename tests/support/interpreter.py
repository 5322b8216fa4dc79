"""Triton's interpreter, without what makes most of its time: what it works out anew at every operation.

It searches its whole language at every helper's call, and makes the facts of every type and shape again.
"""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_prepared = set()
_make_block = tl.block_type.__init__
_make_tensor = tl.tensor.__init__
_make_numpy_dtype = interpreter._get_np_dtype


def _call(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
    """A helper called from a kernel. The kernel's launch has prepared the language; a helper adds to it only once."""
    if self.fn not in _prepared:
        interpreter._patch_lang(self.fn)
        _prepared.add(self.fn)
    return self.rewrite()(*arguments, **named)


@functools.cache
def _block(element: tl.dtype, shape: tuple[int, ...]) -> dict[str, Any]:
    made = object.__new__(tl.block_type)
    _make_block(made, element, list(shape))
    return vars(made)


def _block_type(self: tl.block_type, element: tl.dtype, shape: Any) -> None:
    sizes = tuple(s.value if isinstance(s, tl.constexpr) else s for s in shape)
    vars(self).update(_block(tl.int64 if element.is_ptr() else element, sizes))
    self.element_ty = element  # a pointer has no hash


@functools.cache
def _numpy_dtype(scalar: tl.dtype) -> Any:
    return _make_numpy_dtype(scalar)


@functools.cache
def _tensor_of(shape: tuple[int, ...]) -> dict[str, Any]:
    made = object.__new__(tl.tensor)
    _make_tensor(made, None, tl.block_type(tl.int32, list(shape)) if shape else tl.int32)
    return {"shape": made.shape, "numel": made.numel}


def _tensor(self: tl.tensor, handle: Any, type: Any) -> None:
    vars(self).update(_tensor_of(tuple(type.shape) if type.is_block() else ()))
    self.handle, self.type, self.dtype = handle, type, type.scalar


def make_faster() -> None:
    interpreter.InterpretedFunction.__call__ = _call
    interpreter._get_np_dtype = lambda type: _numpy_dtype(tl.uint64 if type.scalar.is_ptr() else type.scalar)
    tl.block_type.__init__ = _block_type
    tl.tensor.__init__ = _tensor
