"""The host's model of CUDA's execution: what it gives is right, and each planted fault of a kernel is caught."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_host import smoke
from cuda_host.backend import build, cannot_build, load, sanitizer_libraries, set_seed
from support import settings
from support.contract import assert_identical
from support.pair_loss import OPTIONS, Case, call
from torch.utils._python_dispatch import TorchDispatchMode

from dmlkernels import functional as F
from dmlkernels import use_backend
from dmlkernels._contract import SCHEMAS
from dmlkernels.testing import EAGER, PER_ROW, RELATIVE, make_pairs

SOURCES = Path(__file__).resolve().parents[1] / "cuda_host"
SEEDS = range(8)
NO_LEAKS = {"ASAN_OPTIONS": "detect_leaks=0"}  # neither what Python keeps nor the fibers of a launch that failed

pytestmark = pytest.mark.skipif(
    cannot_build() is not None and os.environ.get("DMLKERNELS_REQUIRE_NATIVE") != "1", reason=str(cannot_build())
)


def cases(source: str) -> list[str]:
    return re.findall(r"^DML_CASE\((\w+)\)", (SOURCES / source).read_text(), re.MULTILINE)


def drive(name: str, which: str, sanitized: bool = False) -> subprocess.CompletedProcess[str]:
    """One line per seed."""
    return subprocess.run(
        [build("cuda_host_driver_sanitized" if sanitized else "cuda_host_driver"), name, which, *map(str, SEEDS)],
        env=os.environ | NO_LEAKS,
        capture_output=True,
        text=True,
    )


def outcomes(name: str, which: str) -> list[str]:
    done = drive(name, which)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(SEEDS)
    return lines


def numbers(line: str) -> np.ndarray:
    assert not line.startswith("error"), line
    return np.array([int(word, 16) for word in line.split()], dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("name", cases("checks.cpp"))
@pytest.mark.parametrize("sanitized", [False, pytest.param(True, marks=pytest.mark.full)], ids=["plain", "sanitized"])
def test_what_the_host_gives(name, sanitized):
    done = drive(name, "right", sanitized)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n" * len(SEEDS), "")


# What each fault leads to; the right twin of every one gives the same numbers whatever the order of the threads.

REFUSED = {
    "shared_overrun": "a kernel wrote beyond the 256 bytes of shared memory it asked for, at byte 256",
    "shared_overrun_with_minus_one": "a kernel wrote beyond the 256 bytes of shared memory it asked for, at byte 256",
    "too_many_blocks_on_x": "a grid of 2147483648 x 1 x 1 blocks, more than 2147483647 on x or 65535 on y or z",
    "too_many_blocks_on_y": "a grid of 1 x 65536 x 1 blocks, more than 2147483647 on x or 65535 on y or z",
    "too_many_blocks_on_z": "a grid of 1 x 1 x 65536 blocks, more than 2147483647 on x or 65535 on y or z",
    "too_many_threads": "a block has at most 1024 threads",
    "too_much_shared": "a block asks for 101377 bytes of shared memory, more than the 99 KiB that every device has",
    "divergent_barrier": "divergent barrier: 48 threads have returned, 16 threads wait for their block at @",
    "barrier_in_both_branches": (
        "divergent barrier: 24 threads wait for their block at @, 40 threads wait for their block at @"
    ),
    "warp_vote_after_return": "divergent barrier: 24 threads have returned, 40 threads wait for their warp at @",
    "shuffle_outside_mask": "a shuffle reads a lane outside its mask at @",
    "lane_not_in_its_mask": "a lane is not in the mask of its own warp operation at @",
    "copy_beyond_shared": "a copy to what is not shared memory at @",
    "misaligned_copy": "a copy of misaligned addresses at @",
}
NOT_A_NUMBER = ["shared_overread", "shared_uninitialised", "copy_without_wait", "copy_with_too_short_a_wait"]
DEPENDS_ON_ORDER = [
    "missing_barrier",
    "missing_barrier_of_a_loop",
    "missing_warp_barrier",
    "copy_without_barrier",
    "blocks_in_order",
    "sum_by_atomics",
]
SANITIZED = {
    "shared_overrun": "AddressSanitizer: use-after-poison.*WRITE of size 4.*write_shared",
    "shared_overread": "AddressSanitizer: use-after-poison.*READ of size 4.*read_shared",
    "global_overrun": "AddressSanitizer: heap-buffer-overflow.*WRITE of size 4.*write_global",
    "global_overread": "AddressSanitizer: heap-buffer-overflow.*READ of size 4.*read_global",
    "misaligned_load": "runtime error: member access within misaligned address .* requires 8 byte alignment",
}


def test_every_fault_has_its_test():
    assert set(cases("faults.cpp")) == {*REFUSED, *NOT_A_NUMBER, *DEPENDS_ON_ORDER, *SANITIZED}


@pytest.mark.parametrize("name", cases("faults.cpp"))
def test_right_twin(name):
    first, *others = outcomes(name, "right")
    assert np.isfinite(numbers(first)).all()
    assert set(others) == {first}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    words = re.escape("error: cuda_host: " + REFUSED[name]).replace("@", r"(\S+):(\d+)")
    for line in outcomes(name, "fault"):
        found = re.fullmatch(words, line)
        assert found, line
        for file, number in zip(found.groups()[::2], found.groups()[1::2], strict=True):
            place = Path(file).read_text().splitlines()[int(number) - 1]
            assert re.search("__syncthreads|__shfl|__ballot|copy", place)


@pytest.mark.parametrize("name", NOT_A_NUMBER)
def test_not_a_number(name):
    for line in outcomes(name, "fault"):
        assert np.isnan(numbers(line)).any()


@pytest.mark.parametrize("name", DEPENDS_ON_ORDER)
def test_depends_on_the_order(name):
    first = outcomes(name, "fault")
    assert len(set(first)) > 1
    assert outcomes(name, "fault") == first  # and a seed gives the same order again


@pytest.mark.full
@pytest.mark.parametrize("name", SANITIZED)
def test_sanitized(name):
    done = drive(name, "fault", sanitized=True)
    assert done.returncode != 0
    assert re.search(SANITIZED[name], done.stderr, re.DOTALL)
    done = drive(name, "right", sanitized=True)
    assert (done.returncode, done.stderr) == (0, "")


# What a launch asks of CUDA's runtime.


def launched(what: str) -> str:
    return subprocess.run([build("launch_driver"), what], capture_output=True, text=True, check=True).stdout


def test_a_launch_that_fails_leaves_no_error():
    """Which torch would find after the next kernel of its own."""
    failed = "CUDA cannot launch the_kernel: "
    assert launched("launch") == failed + "invalid configuration argument; launches: 1, left: 0"
    assert launched("attribute") == failed + "invalid argument; launches: 0, left: 0"


def test_an_earlier_error_is_not_the_launch():
    assert launched("earlier") == "launched; launches: 1, left: 1"


def test_the_limit_of_shared_memory_is_never_lowered():
    """It is the kernel's, not the launch's: another thread may be about to launch with more."""
    assert launched("limits").split() == ["101376"] * 3


# The kernels themselves.


@pytest.fixture
def on_host() -> Iterator[None]:
    load()
    with use_backend("cuda-host"):
        yield
    set_seed(0)


class Names(TorchDispatchMode):
    """Names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(str(func))
        return func(*args, **(kwargs or {}))


def test_every_operator_is_tried(on_host):
    with Names() as names:
        for name in smoke.CALLS:
            smoke.run(name, torch.float32)
    assert {f"dmlkernels_cuda_host.{op}.default" for op in SCHEMAS} <= names.found


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", smoke.CALLS)
def test_same_bits_in_every_order(on_host, name, dtype):
    """Of the threads of a block and the blocks of a launch: there is no race."""
    set_seed(0)
    first = smoke.run(name, dtype)
    assert first.value.isfinite().all()
    for seed in (1, 2):
        set_seed(seed)
        assert_identical(smoke.run(name, dtype), first)


def smoke_of_sanitized_kernels(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, smoke.__file__, build("dmlkernels_cuda_host_sanitized"), *names],
        env=os.environ | NO_LEAKS | {"LD_PRELOAD": sanitizer_libraries(), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )


@pytest.mark.full
def test_sanitizers_see_the_tensors():
    done = smoke_of_sanitized_kernels("overrun")
    assert done.returncode != 0
    assert re.search("AddressSanitizer: heap-buffer-overflow.*WRITE of size 4.*overrun", done.stderr, re.DOTALL)


@pytest.mark.full
@pytest.mark.parametrize("part", range(4))
def test_sanitized_kernels(part):
    names = list(smoke.CALLS)[part::4]
    done = smoke_of_sanitized_kernels(*names)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[:4000]
    assert len(done.stdout.splitlines()) == sum(len(smoke.CALLS[name].sanitized) for name in names)


# What has to be exact, whatever the compiler makes of the formulae around it: a distance of a row to its copy, the same
# bits of (i, j) and (j, i), copies that are not counted, one order of summation on every backend.
EXACT = (
    "ops/test_pairwise.py::test_coincident_rows",
    "ops/test_pairwise.py::test_symmetric_to_the_bit",
    "ops/test_nearest_positive.py::test_first_of_copies",
    "ops/test_ties.py::test_bits_of_norms_and_difference_forms",
    "losses/test_ranked_list.py::test_every_option_with_copies",
)


@pytest.mark.full
@pytest.mark.skipif(" fma " not in Path("/proc/cpuinfo").read_text(), reason="this processor has no fused multiply-add")
def test_exact_where_the_compiler_contracts():
    tests = [str(SOURCES.parent / name) for name in EXACT]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda-host", "-m", "not slow", *tests],
        env=os.environ | {"DMLKERNELS_CUDA_HOST": "dmlkernels_cuda_host_contracted"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("d", [512, 2048])
def test_wide_rows(on_host, d):
    """At distances of 0.12, where the product form cancels most: what a tensor core cuts off a sum with each of its D/8
    steps would be a drift.
    """
    x = 1 + 0.085 * torch.randn(24, d, generator=torch.Generator().manual_seed(8))
    got = F.pairwise_distance(x, normalize=True)
    with use_backend("reference"):
        exact, eager = (F.pairwise_distance(rows, normalize=True) for rows in (x.double(), x))
    assert 0.1 < float(exact[exact > 0].min()) < float(exact.max()) < 0.13
    error, of_eager = (float((found.double() - exact).abs().max()) for found in (got, eager))
    assert error <= EAGER * of_eager + RELATIVE * float(exact.max()) + PER_ROW
    assert torch.equal(got, got.T)


@pytest.mark.parametrize("rows", [30, 9], ids=["columns", "rows"])
def test_products_of_float32_are_our_own(on_host, rows):
    """PyTorch's are of TF32 where its user allows that, and bounds of the condition number would not hold."""

    def products(normalize: bool) -> set[str]:
        x = make_pairs("random", rows, None, 17).embeddings.requires_grad_()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            F.coding_rate(x, normalize=normalize).backward()
        return {event.key for event in profile.key_averages()} & {f"aten::{name}" for name in ("mm", "bmm", "addmm")}

    assert products(normalize=True) == set()
    assert products(normalize=False) == {"aten::mm"}  # in float64


@pytest.mark.full
@pytest.mark.parametrize("m", [4097, 4224, 4352, 4480])
def test_mirrored_tiles_at_their_own_sizes(on_host, m):
    """From about 4,096 rows on, a GPU computes each unordered pair of tiles once: 33 tiles, the last of one row or
    whole, an even ring, and one more.
    """
    case = Case(make_pairs("random", m, None, 4, 40), OPTIONS["contrastive"], None, {})
    with settings.deterministic(False):
        found = call(case, case.pairs.embeddings)
    with use_backend("reference"):
        exact = call(case, case.pairs.embeddings.double())
    assert torch.equal(found.pos_members.double(), exact.pos_members)
    assert torch.equal(found.neg_members.double(), exact.neg_members)
    for got, true in [(found.pos, exact.pos), (found.neg, exact.neg)]:
        torch.testing.assert_close(got.double(), true, rtol=1e-5, atol=1e-5)
