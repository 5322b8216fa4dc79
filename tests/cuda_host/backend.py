"""The backend "cuda-host": the kernels of csrc/cuda, compiled for this processor when a test first asks for them."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dmlkernels import _backend, _library

BUILD = Path(__file__).resolve().parents[2] / "build" / f"native-{sys.implementation.cache_tag}"
LIBRARY = os.environ.get("DMLKERNELS_CUDA_HOST", "dmlkernels_cuda_host")  # or another build of the same kernels
_CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def cannot_build() -> str | None:
    """What keeps this machine from compiling the kernels, or None."""
    if _CMAKE is None:
        return "the cuda-host kernels are compiled with cmake, which is not on the PATH"
    if not (BUILD / "CMakeCache.txt").is_file():
        return "the cuda-host kernels are compiled in the build folder of an editable install: pip install -e ."
    if os.uname().machine != "x86_64":
        return "the fibers of tests/cuda_host are written for x86-64"
    return None


@functools.cache
def build(target: str) -> Path:
    """Bring a CMake target of tests/ up to date: the file, or the folder of a target that makes several."""
    if why := cannot_build():
        raise RuntimeError(why)
    _run_cmake(["--build", BUILD, "--target", target], f"{target} does not compile")
    folders = (BUILD / "tests" / "cuda_host", BUILD / "tests" / "ptx", BUILD)
    paths = (folder / name for folder in folders for name in (f"lib{target}.so", target))
    return next((path for path in paths if path.exists()), BUILD / "tests" / "ptx")


def configure(**variables: str) -> None:
    """Set variables of the build folder where they have other values."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    if not all(
        re.search(rf"^{name}:\w+={re.escape(value)}$", cache, re.MULTILINE) for name, value in variables.items()
    ):
        _run_cmake([*(f"-D{name}={value}" for name, value in variables.items()), BUILD], "cmake does not configure")


def _run_cmake(arguments: list, failure: str) -> None:
    """Parallel test processes wait for one another, as two ninjas in one folder would not."""
    with (BUILD / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([_CMAKE, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{failure}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")


@functools.cache
def load() -> None:
    """Put the kernels behind the operators of `dmlkernels_cuda_host`; note why, where they cannot be compiled."""
    if why := cannot_build():
        _backend.missing["cuda-host", "cpu"] = why
        return
    torch.ops.load_library(build(LIBRARY))
    _backend.loaded["cuda-host"].add("cpu")


def sanitizer_libraries() -> str:
    """What a Python that loads the library with sanitizers needs in LD_PRELOAD."""
    cache = (BUILD / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.MULTILINE).group(1)
    names = [f"-print-file-name={name}" for name in ("libasan.so", "libubsan.so")]
    found = [subprocess.run([compiler, name], capture_output=True, text=True, check=True).stdout for name in names]
    return " ".join(path.strip() for path in found)


def set_seed(seed: int) -> None:
    """The order in which the threads of a block run, from the next launch on."""
    ctypes.CDLL(build(LIBRARY)).dmlkernels_cuda_host_seed(ctypes.c_uint64(seed))


@contextmanager
def only_check_launches() -> Iterator[None]:
    """Launches are refused as a device would, and none runs: for sizes that only a device has time for."""
    run = ctypes.CDLL(build(LIBRARY)).dmlkernels_cuda_host_run
    run(ctypes.c_bool(False))
    try:
        yield
    finally:
        run(ctypes.c_bool(True))


class Launch(ctypes.Structure):
    """The head of the shim's Launch."""

    _fields_ = [("kernel", ctypes.c_void_p), ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3)]


@contextmanager
def recorded_launches() -> Iterator[list[tuple[int, tuple[int, ...], tuple[int, ...]]]]:
    """Kernel, grid and block of every launch, of which none runs: what they leave in memory is anything."""
    launches: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = []

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Launch))
    def note(launch: Any) -> bool:
        launches.append((launch.contents.kernel, tuple(launch.contents.grid), tuple(launch.contents.block)))
        return True

    launch_by = ctypes.CDLL(build(LIBRARY)).dmlkernels_cuda_host_launch_by
    launch_by(note)
    try:
        yield launches
    finally:
        launch_by(None)


_library.add_backend("cuda-host", "dmlkernels_cuda_host")
