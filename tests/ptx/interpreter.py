"""The interpreter of PTX from Python: load a text, launch an entry on the host's memory.

Every access is checked against the memory that is known: that of every CPU tensor made after `watch_torch`, and what
`remember` was told of.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from cuda_host.backend import build


class Parameter(NamedTuple):
    offset: int
    size: int


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build("dmlkernels_ptx")))
    text, number, pointer = ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p
    for name, result, arguments in (
        ("error", text, []),
        ("load", pointer, [text]),
        ("free", None, [pointer]),
        ("entries", text, [pointer]),
        ("parameters", number, [pointer, text, pointer, pointer, number]),
        ("launch", number, [pointer, text, pointer, pointer, ctypes.c_size_t, pointer, ctypes.c_size_t]),
        ("launches", number, [pointer, text]),
        ("instructions", ctypes.c_int64, [pointer, text]),
        ("seed", None, [ctypes.c_uint64]),
        ("tensor_cores", None, [number, number]),
        ("add_memory", None, [pointer, ctypes.c_size_t]),
        ("remove_memory", None, [pointer]),
        ("watch_torch", None, []),
        ("bind", None, [pointer, pointer, text]),
    ):
        function = getattr(loaded, f"dmlkernels_ptx_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def _checked(result: Any, failed: Any) -> Any:
    if result == failed:
        raise RuntimeError(f"ptx: {library().dmlkernels_ptx_error().decode()}")
    return result


class Module:
    """A text of PTX. Its entries are assembled when they are first asked for; an unknown instruction is an error."""

    def __init__(self, text: str):
        self.handle = _checked(library().dmlkernels_ptx_load(text.encode()), None)
        self.entries: list[str] = library().dmlkernels_ptx_entries(self.handle).decode().split()

    def close(self) -> None:
        library().dmlkernels_ptx_free(self.handle)

    def parameters(self, entry: str) -> list[Parameter]:
        ask, name = library().dmlkernels_ptx_parameters, entry.encode()
        count = _checked(ask(self.handle, name, None, None, 0), -1)
        offsets, sizes = (ctypes.c_size_t * count)(), (ctypes.c_size_t * count)()
        _checked(ask(self.handle, name, offsets, sizes, count), -1)
        return [Parameter(*pair) for pair in zip(offsets, sizes, strict=True)]

    def launch(
        self, entry: str, grid: Sequence[int], block: Sequence[int], parameters: bytes, dynamic_shared: int = 0
    ) -> None:
        """Run an entry; grid and block have three numbers, and the parameters lie as `parameters` says.

        Raises:
            RuntimeError: for what a GPU would hang on or corrupt, with the instruction.
        """
        done = library().dmlkernels_ptx_launch(
            self.handle,
            entry.encode(),
            (ctypes.c_uint * 3)(*grid),
            (ctypes.c_uint * 3)(*block),
            dynamic_shared,
            parameters,
            len(parameters),
        )
        _checked(done, -1)

    def launches(self, entry: str) -> int:
        """How often an entry has been launched."""
        return _checked(library().dmlkernels_ptx_launches(self.handle, entry.encode()), -1)

    def instructions(self, entry: str) -> int:
        """How many its threads have executed, over all launches."""
        return _checked(library().dmlkernels_ptx_instructions(self.handle, entry.encode()), -1)


@functools.cache
def watch_torch() -> None:
    """From now on the memory of every CPU tensor that torch makes is known, for as long as it lives."""
    library().dmlkernels_ptx_watch_torch()


@contextlib.contextmanager
def remember(address: int, size: int) -> Iterator[None]:
    """Let kernels touch memory that is not a tensor's, or that of an older one."""
    library().dmlkernels_ptx_add_memory(address, size)
    try:
        yield
    finally:
        library().dmlkernels_ptx_remove_memory(address)


def set_seed(seed: int) -> None:
    """The order of warps, lanes and blocks in every later launch."""
    library().dmlkernels_ptx_seed(seed)


@contextlib.contextmanager
def tensor_cores(extra_bits: int, together: int) -> Iterator[None]:
    """How they add: so many products at a time, cut off so many bits beyond float32's."""
    library().dmlkernels_ptx_tensor_cores(extra_bits, together)
    try:
        yield
    finally:
        library().dmlkernels_ptx_tensor_cores(2, 16)
