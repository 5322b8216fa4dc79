"""The backend "cuda-ptx": the launchers of "cuda-host", whose kernels are nvcc's PTX, interpreted."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cuda_host import backend as cuda_host
from ptx import interpreter

from dmlkernels import _backend

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
_NVCC = shutil.which(
    "nvcc",
    path=os.pathsep.join(
        [f"{os.environ[home]}/bin" for home in ("CUDA_HOME", "CUDA_PATH") if home in os.environ]
        + [os.environ["PATH"], "/usr/local/cuda/bin"]
    ),
)


def cannot_run() -> str | None:
    """What keeps this machine from compiling the kernels to PTX, or None."""
    if _NVCC is None:
        return "the PTX of the kernels is made by nvcc, which is neither on the PATH nor in CUDA_HOME"
    return cuda_host.cannot_build()


class Kernel(NamedTuple):
    """A function of the host's library that has the name of a kernel."""

    file: str  # the source, of one that other sources cannot see; empty otherwise
    name: str
    address: int


def normalised(name: str) -> str:
    """A mangled name with what differs on the host: unnamed namespaces, and that of the number type (DML_ISA)."""
    parts = re.split(r"(\d+)(?=_GLOBAL__N_)", name)
    rest = [text[int(length) :] for length, text in zip(parts[1::2], parts[2::2], strict=True)]
    return "12_GLOBAL__N_1".join([parts[0], *rest]).replace("7generic", "7on_host")


def functions(library: Path) -> list[Kernel]:
    """Those of a library's symbol table, in which the local ones of a source follow its name."""
    table = subprocess.run(["readelf", "-sW", library], capture_output=True, text=True, check=True).stdout
    found, file = [], ""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 8:
            continue
        _, address, _, kind, binding, *_, name = fields
        if kind == "FILE":
            file = name
        if kind == "FUNC" and address.strip("0"):
            found.append(Kernel(file if binding == "LOCAL" else "", name, int(address, 16)))
    return found


@functools.cache
def folder() -> Path:
    """Where the texts are, brought up to date."""
    cuda_host.configure(DML_PTX_NVCC=str(_NVCC))
    return cuda_host.build("cuda_ptx")


@functools.cache
def modules() -> dict[str, interpreter.Module]:
    """The PTX of every source, by its name without an ending; every kernel of the host is bound to its entry."""
    sources = [path.stem for path in sorted(SOURCES.glob("*.cu")) if path.stem != "library"]
    found = {source: interpreter.Module((folder() / f"{source}.ptx").read_text()) for source in sources}
    for source, module in found.items():
        _bind(source, module)
    return found


def _bind(source: str, module: interpreter.Module) -> None:
    for entry in module.entries:
        name = normalised(entry)
        address = _addresses().get((source, name)) or _addresses().get(("", name))
        if address is None:
            raise RuntimeError(f"{source}.cu: the host's library has no kernel {name}")
        interpreter.library().dmlkernels_ptx_bind(address, module.handle, entry.encode())


@functools.cache
def _addresses() -> dict[tuple[str, str], int]:
    """Where the loaded library has a function, by its source, if only that sees it, and its name."""
    library, anchor = cuda_host.build(cuda_host.LIBRARY), "dmlkernels_cuda_host_launch_by"
    known = functions(library)
    loaded = ctypes.cast(getattr(ctypes.CDLL(str(library)), anchor), ctypes.c_void_p).value
    base = loaded - next(kernel.address for kernel in known if kernel.name == anchor)
    return {(kernel.file.removesuffix(".cu"), kernel.name): base + kernel.address for kernel in known}


@contextlib.contextmanager
def replaced(source: str, text: str) -> Iterator[None]:
    """Another text for the kernels of a source."""
    other, own = interpreter.Module(text), modules()[source]
    _bind(source, other)
    try:
        yield
    finally:
        _bind(source, own)
        other.close()


@functools.cache
def load() -> None:
    """Put the kernels behind the operators of `dmlkernels_cuda_host`; note why, where they cannot be compiled."""
    if why := cannot_run():
        _backend.missing["cuda-ptx", "cpu"] = why
        return
    cuda_host.load()
    modules()
    interpreter.watch_torch()
    _backend.loaded["cuda-ptx"].add("cpu")


@contextlib.contextmanager
def _launched_by(launcher: str) -> Iterator[None]:
    set_launcher = ctypes.CDLL(str(cuda_host.build(cuda_host.LIBRARY))).dmlkernels_cuda_host_launch_by
    set_launcher(ctypes.cast(getattr(interpreter.library(), launcher), ctypes.c_void_p))
    try:
        yield
    finally:
        set_launcher(None)


def interpreted() -> contextlib.AbstractContextManager[None]:
    """Launches of the host's library run the PTX."""
    return _launched_by("dmlkernels_ptx_run_kernel")


def counted() -> contextlib.AbstractContextManager[None]:
    """Launches are counted for their entry, and done by the host's own kernels."""
    return _launched_by("dmlkernels_ptx_count_kernel")


_backend.namespaces["cuda-ptx"] = _backend.namespaces["cuda-host"]
_backend.loaded["cuda-ptx"] = set()
