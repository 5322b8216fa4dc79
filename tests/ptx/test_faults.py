"""Faults planted in the PTX of the kernels, one each: the interpreter refuses them, or what comes out is wrong.

What is right is the kernel as it is, under the same seeds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from ptx import backend, interpreter
from torch import Tensor

from dmlkernels import functional as F
from dmlkernels import use_backend
from dmlkernels.testing import make_pairs

SEEDS = range(6)
M, N, D = 70, 140, 72  # several tiles, and several steps of a product


def similarity(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return F.pairwise_similarity(x, g, metric="dot")


def positives(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return F.nearest_positive(x, y, g, h).distance


def triplets(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return F.triplet_loss(x, y, positive="all", negative="all", reduction="sum")


class Fault(NamedTuple):
    source: str
    kernels: str  # a pattern of entries
    right: str  # a pattern of what stands in each of them
    wrong: str
    call: Callable[..., Tensor] = similarity
    words: str = ""  # of the refusal; empty where numbers are wrong, of some order of the warps at least
    count: int = 0  # how many places, 0: all


VALUES = ("pairwise", "similarities_kernelILNS_7ProductE1")  # what float32 takes
FIRST = "{{ .reg .pred %few; .reg .b32 %own; mov.u32 %own, %tid.x; setp.lt.u32 %few, %own, {}; @%few bar.sync 0; }}"
FAULTS = {
    # Copies that go on.
    "no_wait": Fault(*VALUES, r"cp\.async\.wait_group[^;]*;", ""),
    "waits_are_too_short": Fault(*VALUES, r"cp\.async\.wait_group +2;", "cp.async.wait_group 3;"),
    "no_group": Fault(*VALUES, r"cp\.async\.commit_group;", ""),
    "copies_of_half": Fault(
        *VALUES, r"(cp\.async\.cg[^;]*\], 16), %r\d+;", r"\1, 8;", words="outside of every allocation"
    ),
    "copy_from_a_misaligned_row": Fault(
        *VALUES, r"(cp\.async\.cg\S* \[%r\d+\], \[%rd\d+)\]", r"\1+4]", words="not a multiple of 16"
    ),
    "copy_from_the_next_row": Fault(
        *VALUES, r"(cp\.async\.cg\S* \[%r\d+\], \[%rd\d+)\]", rf"\1+{N * D * 4}]", words="outside of every allocation"
    ),
    "copy_beyond_shared_memory": Fault(
        *VALUES, r"(cp\.async\.cg\S* \[%r\d+)\]", r"\1+69632]", words="bytes of shared memory"
    ),
    # Fragments.
    "rows_of_a_change_places": Fault(
        *VALUES, r"(mma\S+\s+\{[^}]*\}, )\{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}", r"\1{\3,\2,\4,\5}"
    ),
    "halves_of_a_change_places": Fault(
        *VALUES, r"(mma\S+\s+\{[^}]*\}, )\{(%r\d+),(%r\d+),(%r\d+),(%r\d+)\}", r"\1{\2,\4,\3,\5}"
    ),
    "halves_of_b_change_places": Fault(*VALUES, r"\{(%r\d+),(%r\d+)\}, (\{%f[^}]*\};)", r"{\2,\1}, \3"),
    "columns_of_c_change_places": Fault(
        *VALUES, r"(mma\S+\s+)\{(%f\d+),(%f\d+),(%f\d+),(%f\d+)\}", r"\1{\3,\2,\4,\5}"
    ),
    "another_matrix": Fault(*VALUES, r"(ldmatrix[^[]*\[%r\d+)(?:\+\d+)?\]", r"\1+32]"),
    "matrix_between_two_rows": Fault(
        *VALUES, r"(ldmatrix[^[]*\[%r\d+)(?:\+\d+)?\]", r"\1+8]", words="not a multiple of 16"
    ),
    # Barriers.
    "no_barrier": Fault(*VALUES, r"bar\.sync\s+0;", ""),
    "barrier_of_each_warp": Fault(*VALUES, r"bar\.sync\s+0;", "bar.sync 0, 32;"),
    "barrier_of_too_many": Fault(*VALUES, r"bar\.sync\s+0;", "bar.sync 0, 1024;", words="a barrier for 1024 threads"),
    "barrier_of_half_a_warp": Fault(*VALUES, r"bar\.sync\s+0;", FIRST.format(16), words="here for others", count=1),
    "barrier_of_one_warp": Fault(*VALUES, r"bar\.sync\s+0;", FIRST.format(32), words="divergent barrier", count=1),
    # Shared and global memory.
    "shared_memory_is_not_written": Fault(*VALUES, r"st\.shared\.f32[^;]*;", "", count=1),
    "results_beyond_the_last": Fault(
        *VALUES, r"(st\.global\.f32\s+\[%rd\d+)\]", rf"\1+{M * N * 4}]", words="outside of every allocation"
    ),
    "misaligned_results": Fault(*VALUES, r"(st\.global\.f32\s+\[%rd\d+)\]", r"\1+2]", words="not a multiple of 4"),
    "labels_beyond_the_last": Fault(
        "nearest_positive", "select_kernel", r"(ld\.global\.u64\s+%rd\d+, \[%rd\d+)\]", rf"\1+{8 * N}]", positives,
        "outside of every allocation",
    ),
    # Lanes of a warp.
    "sum_of_half_a_warp": Fault(
        "triplet", "sums_kernel", r"(shfl\.sync\.bfly\.b32\s+\S+, %r\d+), %r\d+,", r"\1, 1,", triplets
    ),
    "lanes_left_out_of_the_mask": Fault(
        "triplet", "sums_kernel", r"(shfl\.sync\.bfly\.b32[^;]*), (?:%r\d+|-1);", r"\1, 0x7fffffff;", triplets,
        "a lane is not in the mask",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    if why := backend.cannot_run():
        (pytest.fail if os.environ.get("DMLKERNELS_REQUIRE_NATIVE") == "1" else pytest.skip)(why)
    backend.load()


def planted(fault: Fault) -> str:
    """The text with the fault in every kernel that it is for."""
    text, places = (backend.folder() / f"{fault.source}.ptx").read_text(), 0
    parts = re.split(r"(?m)^(?=(?:\.visible )?\.entry )", text)
    for k, part in enumerate(parts):
        if re.match(rf"(?:\.visible )?\.entry \S*{fault.kernels}", part):
            parts[k], found = re.subn(fault.right, fault.wrong, part, count=fault.count)
            places += found
    assert places, f"no {fault.right} in {fault.kernels} of {fault.source}.cu"
    return "".join(parts)


def outcome(call: Callable[..., Tensor], seed: int) -> Tensor:
    interpreter.set_seed(seed)
    try:
        with use_backend("cuda-ptx"), backend.interpreted():
            return call(*make_pairs("random", M, N, D, 7))
    finally:
        interpreter.set_seed(0)


@pytest.fixture(scope="module")
def right() -> Callable[[Callable[..., Tensor]], Tensor]:
    """What a call gives, under every seed."""
    known: dict[Callable, Tensor] = {}

    def of(call: Callable[..., Tensor]) -> Tensor:
        if call not in known:
            known[call], *others = [outcome(call, seed) for seed in SEEDS]
            assert known[call].isfinite().all()
            assert all(torch.equal(other, known[call]) for other in others)
        return known[call]

    return of


@pytest.mark.full
@pytest.mark.parametrize("name", FAULTS)
def test_fault(name, right):
    fault = FAULTS[name]
    expected = right(fault.call)
    with backend.replaced(fault.source, planted(fault)):
        if fault.words:
            with pytest.raises(RuntimeError, match=fault.words):
                outcome(fault.call, 0)
        else:
            assert any(not torch.equal(outcome(fault.call, seed), expected) for seed in SEEDS)
    assert torch.equal(outcome(fault.call, 0), expected)
