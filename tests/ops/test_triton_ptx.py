"""Triton's PTX of every kernel, executed on this processor: what Triton's own interpreter never sees."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_host import backend, smoke
from support.sources import launched_kernels

from bench.report.tables import RESULTS, read_json

ROOT = Path(__file__).resolve().parents[2]
# One of each family.
FAMILIES = ["distance", "ranked_list", "nearest", "triplets", "distance_weighted", "rate_of_rows", "cholesky_3"]
FAMILIES += ["soft_triple", "expansion"]
PAIR_LOSSES = ["ranked_list", "ranked_list_wide", "ranked_list_easy", "ranked_list_query", "ranked_list_gallery"]
PAIR_LOSSES += ["contrastive", "multi_similarity", "ntxent", "circle", "mixed", "proxy_anchor"]
BY_TILES = [f"{name}:tiles" for name in PAIR_LOSSES]
BY_TILES += [f"{name}:duplicates" for name in ("ranked_list", "ranked_list_gallery", "contrastive", "mixed")]
# Matrices of rounded entries are others in another dtype.
ROUNDED = [name for name in smoke.CALLS if not name.startswith("cholesky")]
# Of each schedule and each kind of tile, in a CI whose time is Triton's compiler's.
CHOSEN_TILES = ["ranked_list:tiles", "ntxent:tiles", "ranked_list_gallery:duplicates"]
CALLS = {
    "float32": [*smoke.CALLS, *CHOSEN_TILES],
    "bfloat16": [*FAMILIES[:5], "similarity_wide", *CHOSEN_TILES],
    "float16": ["distance", "ranked_list", "nearest", "ranked_list:tiles"],
    "float64": FAMILIES[:5],
}
EVERY_CALL = {
    "float32": [*smoke.CALLS, *BY_TILES],
    "bfloat16": [*ROUNDED, *BY_TILES],
    "float16": [*FAMILIES[:5], "ranked_list:tiles", "similarity_wide"],
    "float64": FAMILIES,
}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
    pytest.mark.skipif(backend.cannot_build() is not None, reason="the interpreter of PTX cannot be compiled here"),
]


def executed(dtype: str, *names: str) -> set[str]:
    """The kernels that these calls launched, whose results agreed with the reference."""
    backend.build("dmlkernels_ptx")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "ptx.triton_kernels", dtype, *names],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    *results, last = done.stdout.splitlines()
    assert len(results) == len(names)
    return set(last.split()[1:])


def test_a_case_of_each_family():
    assert len(executed("float32", *FAMILIES)) >= 20


@pytest.mark.full
@pytest.mark.parametrize("dtype", CALLS)
def test_every_kernel(dtype):
    kernels = executed(dtype, *CALLS[dtype])
    if dtype == "float32":
        assert kernels == launched_kernels() == set(read_json(RESULTS / "executed.json")["ptx"]["triton"])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", EVERY_CALL)
def test_every_call(dtype):
    executed(dtype, *EVERY_CALL[dtype])
