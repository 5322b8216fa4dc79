"""nvcc's PTX of every CUDA kernel, interpreted: as near to float64 as the kernels have to be, whatever the order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest
import torch
from cuda_host import smoke
from ptx import backend, interpreter
from support.contract import assert_identical

from bench.report import resources
from bench.report.tables import RESULTS, read_json
from dmlkernels import _backend, set_float32_precision, use_backend
from dmlkernels import functional as F
from dmlkernels.testing import assert_matches, make_pairs

# One of each kind of kernels, in the dtype and precision of the products that differ most from one to the next.
FAMILIES = {
    "similarity_wide": "bfloat16",
    "ranked_list": "float32",
    "ranked_list_plain": "bfloat16",
    "multi_similarity": "tf32",
    "nearest_gallery": "float16",
    "distance_weighted": "float32",
    "triplets_semihard": "float32",
    "cholesky_43": "float32",
    "cholesky_12": "float64",
    "rate_of_classes": "float32",
    "expansion": "bfloat16",
    "soft_triple": "float32",
}
# A dtype, or the precision of the products of float32.
KINDS = ("float64", "float32", "tf32x3", "tf32", "bf16", "bfloat16", "float16")


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    if why := backend.cannot_run():
        (pytest.fail if os.environ.get("DMLKERNELS_REQUIRE_NATIVE") == "1" else pytest.skip)(why)
    backend.load()


@pytest.fixture(autouse=True)
def precision_kept() -> Iterator[None]:
    before = _backend.get_float32_precision()
    yield
    set_float32_precision(before)
    interpreter.set_seed(0)


def dtype_of(kind: str) -> torch.dtype:
    """With the precision that goes with it set."""
    set_float32_precision(kind if kind in _backend.PRECISIONS else "ieee")
    return torch.float32 if kind in _backend.PRECISIONS else getattr(torch, kind)


def check(name: str, kind: str) -> None:
    """The call on the PTX, against the same kernels compiled for this processor."""
    dtype = dtype_of(kind)
    with use_backend("cuda-host"):
        expected = smoke.run(name, dtype)
    with use_backend("cuda-ptx"), backend.interpreted():
        found = smoke.run(name, dtype)
    assert found.value.isfinite().all()
    if not found.value.is_floating_point():
        assert_identical(found, expected)
        return
    # Exponentials and sums differ by a few last bits, and a weight between two numbers of TF32 may go to either.
    eps = 4 * torch.finfo(dtype).eps if dtype in (torch.bfloat16, torch.float16) else 64 * torch.finfo(dtype).eps
    eps += 2.0**-11 if kind in ("tf32", "bf16") else 0.0
    for p, q in zip((found.value, *found.grads), (expected.value, *expected.grads), strict=True):
        largest = float(q.abs().max()) if q.numel() else 0.0
        torch.testing.assert_close(p, q, rtol=0, atol=eps * largest, equal_nan=True)


@pytest.mark.parametrize(("name", "kind"), FAMILIES.items())
def test_a_call_of_each_family(name, kind):
    check(name, kind)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", smoke.CALLS)
def test_every_call(name, kind):
    check(name, kind)


@pytest.mark.full
def test_every_kernel_is_launched_by_a_call():
    """Counted where the calls are the same and their kernels this processor's."""
    with use_backend("cuda-host"), backend.counted():
        for name in smoke.CALLS:
            for kind in KINDS:
                smoke.run(name, dtype_of(kind))
    entries = [entry for module in backend.modules().values() for entry in module.entries]
    launched = [entry for module in backend.modules().values() for entry in module.entries if module.launches(entry)]
    assert set(entries) == set(launched)
    kernels = {name.partition("<")[0] for name in resources.plain(launched).values()}
    for way in ("host", "ptx"):  # as docs/gpu-status.md has them
        assert kernels == set(read_json(RESULTS / "executed.json")[way]["cuda"])


def test_a_selection_looks_at_few_pairs():
    """Each row at its own: of four strips of a gallery in no particular order, at little more than the first one's."""
    x = torch.randn(128, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    g = torch.randn(512, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    labels = torch.zeros(512, dtype=torch.int64)
    module = backend.modules()["nearest_positive"]
    entries = [entry for entry in module.entries if "select_kernel" in entry]

    def instructions(gallery: int) -> int:
        before = sum(map(module.instructions, entries))
        with use_backend("cuda-ptx"), backend.interpreted():
            F.nearest_positive(x, labels[:128], g[:gallery], labels[:gallery])
        return sum(map(module.instructions, entries)) - before

    assert instructions(512) < 2 * instructions(128)


@pytest.mark.full
@pytest.mark.parametrize("name", FAMILIES)
def test_same_bits_in_every_order(name):
    """Of warps and lanes between barriers, and of the blocks of a launch."""
    dtype = dtype_of(FAMILIES[name])
    with use_backend("cuda-ptx"), backend.interpreted():
        first = smoke.run(name, dtype)
        for seed in (1, 2, 3):
            interpreter.set_seed(seed)
            assert_identical(smoke.run(name, dtype), first)


# Against the reference in float64, and how steep the loss is (see assert_matches); others have a hinge near some pair.
SMOOTH: dict[str, dict[str, float]] = {
    "similarity": {},
    "similarity_wide": {},
    "distance": {},
    "ntxent": {},
    "circle": {"exponent": 225.0},  # the largest score of these rows
    "triplets": {},
    "soft_triple": {"exponent": 20.0},
    "proxy_anchor": {"exponent": 35.2},  # as in tests/losses/test_proxy_anchor.py
    "rate": {},
}


@pytest.mark.full
@pytest.mark.parametrize("dtype", smoke.DTYPES, ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_as_near_to_float64_as_pytorch(name, dtype):
    call = smoke.CALLS[name]
    x, y, g, h = make_pairs("random", 37, smoke.N, 24 if call.wide else smoke.D, smoke.CLASSES, dtype)
    with use_backend("cuda-ptx"), backend.interpreted():
        assert_matches(lambda x, g: call.function(x, y, g, h), (x, g), **SMOOTH[name])


@pytest.mark.full
@pytest.mark.parametrize("dtype", smoke.DTYPES, ids=str)
@pytest.mark.parametrize("name", ["similarity_wide", "ntxent"])
def test_worse_tensor_cores_do(name, dtype):
    """None that were measured keep as little of a sum as these."""
    with interpreter.tensor_cores(extra_bits=0, together=4):
        test_as_near_to_float64_as_pytorch(name, dtype)


def test_nothing_is_left_to_contraction():
    """ptxas makes an fma of a product and a sum that do not name their rounding: a copy's distance would not be 0."""
    for source in backend.modules():
        text = (backend.folder() / f"{source}.ptx").read_text()
        assert not re.findall(r"(?<!\.)\b(?:mul|add|sub)(?:\.ftz)?\.f(?:32|64)\b", text), source
