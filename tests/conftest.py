"""Fixtures: the backend, device and dtype that a test runs on, so that a test body holds no condition."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest
import torch

# Triton reads this when a kernel is defined. Without a GPU its interpreter runs the kernels, on CPU tensors.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# cuBLAS reads this when it starts: without it, it refuses to work under deterministic algorithms.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from cuda_host import backend as cuda_host
from ptx import backend as cuda_ptx
from support import settings, tiers
from support.targets import KERNELS, Target

import dmlkernels
from dmlkernels import _backend

if "cpu" in _backend.loaded["triton"]:
    from support import interpreter

    interpreter.make_faster()

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)  # the workers are the parallelism

# With deterministic algorithms on, torch fills what `empty` returns with NaN; glibc does the like for a kernel's own
# scratch memory (M_PERTURB, with bytes that read as -1.7e38). An element that nobody wrote is then seen.
# On a GPU the reference uses operators of PyTorch that have no deterministic algorithm.
torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
if hasattr(ctypes.CDLL(None), "mallopt"):
    ctypes.CDLL(None).mallopt(-6, 1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked `large` to the backends that are fast enough for them; thin the rest to tiers."""

    def left_out(item: pytest.Item) -> bool:
        callspec = getattr(item, "callspec", None)
        target = callspec and (callspec.params.get("kernel") or callspec.params.get("backend"))
        return isinstance(target, Target) and target.emulated and item.get_closest_marker("large") is not None

    if deselected := [item for item in items if left_out(item)]:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not left_out(item)]
    for item, tier in tiers.marks(items):
        item.add_marker(getattr(pytest.mark, tier))


def _id(target: Target) -> str:
    return f"{target.name}-{target.device}"


def _use(request: pytest.FixtureRequest) -> Iterator[Target]:
    target = request.param
    if target.name == "cuda-host":
        cuda_host.load()
    if target.name == "cuda-ptx":
        cuda_ptx.load()
    if target.name != "reference" and target.device not in _backend.loaded.get(target.name, ()):
        why = _backend.missing.get((target.name, target.device), f"no {target.name} kernels for {target.device}")
        if target.name != "triton" and target.device == "cpu" and os.environ.get("DMLKERNELS_REQUIRE_NATIVE") == "1":
            pytest.fail(f"DMLKERNELS_REQUIRE_NATIVE=1, but {why}")
        pytest.skip(why)
    launches = cuda_ptx.interpreted() if target.name == "cuda-ptx" else contextlib.nullcontext()
    with dmlkernels.use_backend(target.name), launches:
        yield target


@pytest.fixture(autouse=True)
def kept_settings() -> Iterator[None]:
    with settings.kept():
        yield


@pytest.fixture(params=KERNELS, ids=_id)
def kernel(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend that has kernels of its own, judged against the reference; it is in use during the test."""
    yield from _use(request)


@pytest.fixture(params=[Target("reference", "cpu"), *KERNELS], ids=_id)
def backend(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Those and the reference, for what can be judged without it; it is in use during the test."""
    yield from _use(request)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Device type on which the test's backend is tested."""
    name = "kernel" if "kernel" in request.fixturenames else "backend"
    return request.getfixturevalue(name).device


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for one test."""
    with settings.changed("number of threads", 2):
        yield
