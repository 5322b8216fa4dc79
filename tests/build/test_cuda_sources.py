"""What the sources of csrc/cuda promise, so that the same kernels run on every device and, in tests, on the host."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.sources import CSRC, reachable_includes, registered

from dmlkernels._contract import SCHEMAS

SOURCES = sorted((CSRC / "cuda").iterdir())
KERNELS = [path for path in SOURCES if path.suffix == ".cu"]
LAUNCHERS = [path for path in SOURCES if path.suffix == ".cpp"]


def code(path: Path) -> str:
    """A source without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def users(pattern: str) -> set[str]:
    return {path.name for path in SOURCES if re.search(pattern, code(path))}


def test_every_operator_has_its_kernels():
    assert len(KERNELS) >= 2
    assert set().union(*map(registered, LAUNCHERS)) == set(SCHEMAS)


def test_one_way_to_launch_and_to_share_memory():
    assert users("<<<|>>>") == set()
    assert users(r"cudaLaunch|cudaFuncSetAttribute") == {"launch.cuh"}
    assert users(r"\b__shared__\b") == {"launch.cuh"}
    assert users(r"\b__global__\b|__launch_bounds__") == {"launch.cuh"}


def test_assembly_has_its_twin_on_the_host():
    assembly = {"mma.cuh", "async.cuh", "approximate.cuh"}
    assert users(r"\basm\b|__cvta_generic") <= assembly
    assembly |= {"read_through.cuh"}
    # And what these call a large batch or workspace is smaller there, so that tests of few rows see both.
    smaller = {"pair_loss_op.cpp", "distance_weighted_op.cpp", "triplet_op.cpp"}
    assert users(r"DML_CUDA_HOST") <= smaller | assembly | {"launch.cuh", "launcher.h"}


def test_no_launch_waits_for_the_device():
    assert users(r"cuda\w*Synchronize|cudaMemcpy(?!Async)|cudaMalloc|cudaFree|_local_scalar_dense|\bitem\b") == set()


def test_no_function_of_less_precision():
    assert users(r"\b__(expf|logf|log2f|powf|sinf|cosf|fdividef|frsqrt_rn|fsqrt_\w+)\b|use_fast_math") == set()


def test_a_fused_multiply_add_is_asked_for_by_name():
    """By C++ and by CUDA: where a compiler chooses, a row has a distance to its copy."""
    root = CSRC.parent
    assert "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>" in (root / "cmake" / "cuda.cmake").read_text()
    assert "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>" in (root / "CMakeLists.txt").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_can_be_read(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_kernels_include_no_header_of_torch(path):
    """Those take seconds to compile; the types of numbers are all that a kernel needs of torch."""
    assert [name for name in reachable_includes(path) if re.match(r"(torch/(?!headeronly/)|ATen/|c10/)", name)] == []


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_operators_run_on_the_device_of_their_tensors(path):
    """A function of the stable ABI that launches something first enters the device, and takes torch's stream of it."""
    if "STABLE_TORCH_LIBRARY_IMPL" in code(path):
        assert "OnDevice" in code(path)
        assert "STABLE_TORCH_LIBRARY_IMPL(DML_OPERATORS, DML_DEVICE_KEY" in code(path)
