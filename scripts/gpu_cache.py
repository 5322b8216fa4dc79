"""Fills Triton's cache for a GPU that is not here: `python -m scripts.gpu_cache FOLDER`, a part of `make gpu-wheel`.

What `make gpu` does with the Triton kernels is done with CPU tensors. The launcher of each operator is given tensors of
the same shapes without storage, and Triton itself compiles for CAPABILITY what it would launch, and the module that
launches it; the results come from the native kernels. Triton's release, Python's and the sources decide on the names in
the cache, so all three have to be those of the GPU's machine. With --whole it fails where anything was missing.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.kernels import cuda_cases
from bench.kernels.contenders import contender, products_of
from bench.kernels.timing import take
from dmlkernels import _backend, _contract, _library, selfcheck, use_backend
from scripts import gpu_smoke, gpu_steps

CAPABILITY = (9, 0)
PROPERTIES = {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132}  # of an H100

PARTS = ("check", "test", "bench")
failures: dict[str, str] = {}  # what does not compile
computes = True  # whether results are those of the native kernels, or zeros of the same shapes


def stand_in_driver(folder: Path) -> Any:
    """Triton's driver of a GPU: compiles all it does for a real one, and launches nothing.

    Its modules link against libcuda.so.1 and call it at a launch only: here a library without functions is enough.
    """
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null", "-o", library], check=True)
    ctypes.CDLL(str(library))
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    sys.setdlopenflags(os.RTLD_LAZY)
    from triton.backends.nvidia.driver import CudaDriver, CudaLauncher

    class Launcher(CudaLauncher):
        def __call__(self, *arguments: Any) -> None:
            pass

    driver = CudaDriver()
    driver.launcher_cls = Launcher
    # A module, a function, its registers, its spills, and the most threads that it runs in.
    driver.utils.load_binary = lambda *arguments: (1, 1, 0, 0, 1024)
    driver.utils.unload_module = lambda *arguments: None
    driver.utils.get_device_properties = lambda device: PROPERTIES
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda device: 0
    driver.get_device_capability = lambda device=0: CAPABILITY
    return driver


def without_storage(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def launch(operator: str, *arguments: Any) -> Any:
    """In the place of an operator of the Triton kernels."""
    from dmlkernels.triton_kernels import MODULES  # type: ignore[import-not-found]  # it stands elsewhere in a clone

    module = importlib.import_module(f"dmlkernels.triton_kernels.{MODULES[operator.rpartition('_')[0]]}")
    named = _contract.OPERATORS[operator].named(arguments)
    shapes = {name: without_storage(value) for name, value in named.items()}
    if "check" in shapes:
        shapes["check"] = False  # it would read the results
    try:
        module.OPERATORS[operator](**shapes)
    except Exception as error:  # of the compiler; the other kernels are wanted all the same
        rows = next(x for x in arguments if isinstance(x, Tensor))
        failures[f"{operator} of {tuple(rows.shape)} {str(rows.dtype)[6:]}"] = f"{type(error).__name__}: {error}"
    if computes:
        return getattr(torch.ops.dmlkernels, operator)(*arguments)
    results = _library._fake(operator, *arguments)
    return results.zero_() if isinstance(results, Tensor) else tuple(result.zero_() for result in results)


def install(driver: Any) -> None:
    """CPU tensors take the Triton backend, as `launch` has it."""
    import triton
    from dmlkernels.triton_kernels import _configs  # type: ignore[import-not-found]

    triton.runtime.driver.set_active(driver)
    _configs.capability = lambda device: 10 * CAPABILITY[0] + CAPABILITY[1]
    for operator in _contract.OPERATORS:
        _library.implement("dmlkernels_triton", operator, lambda *a, operator=operator: launch(operator, *a), "cpu")
    _backend.loaded["triton"].add("cpu")


class Installed:
    """A plugin of pytest: after conftest.py, which takes a Triton backend of CPU tensors for its interpreter."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def pytest_sessionstart(self) -> None:
        install(self.driver)


def run_tests(driver: Any) -> None:
    """Those of the Triton kernels on a GPU, in the same cases."""
    sys.path.insert(0, str(Path(gpu_smoke.__file__).resolve().parents[1] / "tests"))
    os.environ["TRITON_INTERPRET"] = "0"
    from support import targets

    targets.KERNELS[:] = [targets.Target("triton", "cpu")]
    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "-m", gpu_steps.TIER, "-k", "triton-cpu"]
    pytest.main([*map(str, gpu_steps.triton_tests()), *options], plugins=[Installed(driver)])


def run_bench() -> None:
    """Every row that the Triton kernels are in, once; shapes and types are what counts."""
    global computes
    computes = False
    for case in cuda_cases.CASES:
        if "triton" in case.rivals:
            print(case.name, flush=True)
            with products_of(case):
                take(contender(case, "triton"), case.batch(), case.incoming())
    computes = True


def entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--whole", action="store_true", help="fail if anything has to be compiled")
    arguments = parser.parse_args()
    os.environ["TRITON_CACHE_DIR"] = str(arguments.folder.resolve())
    before = entries(arguments.folder)
    with tempfile.TemporaryDirectory() as folder:
        driver = stand_in_driver(Path(folder))
        if "test" in arguments.parts:
            run_tests(driver)
        else:
            install(driver)
        if "check" in arguments.parts:
            selfcheck.run(chosen=[("triton", "cpu")])
            with use_backend("triton"):
                for name, run in gpu_smoke.calls("cpu", only_run=True):
                    print(name, run(), flush=True)
        if "bench" in arguments.parts:
            run_bench()
    found = len(entries(arguments.folder) - before)
    for call, error in failures.items():
        print(f"{call} does not compile: {error}")
    print(f"{len(before)} entries were there, {found} are new, {len(failures)} calls do not compile")
    return int(bool(failures) or (arguments.whole and found > 0))


if __name__ == "__main__":
    sys.exit(main())
