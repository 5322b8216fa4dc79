"""Every Triton kernel becomes machine code of GPUs that are not here: no spills, tensor cores where a product is.

In a process of its own: where the interpreter is on, nothing can be compiled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.sources import launched_kernels

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("80", "90", "100", "120")

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compile_kernels(*options: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-m", "bench.report.triton_resources", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_no_product_is_fused_with_a_sum():
    """In squared norms and difference forms: a copy lies at distance 0. Of every kernel the tests below see it."""
    kernels = ("_rows._prepare", "pairwise._forward", "_listed._distances")
    done = compile_kernels("--quick", "--dtypes", "float32", "--architectures", "80", "--kernels", *kernels)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("5 kernels")


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("\tmul.f32 \t%r1, %r2, %r3;", 1),
        ("\t@%p3 add.ftz.f32 \t%r1, %r2, %r3;", 1),
        ("\tfma.rn.f32 \t%r1, %r2, %r3, %r4;", 1),
        ("\tmul.rn.f32 \t%r1, %r2, %r3;", 0),
        ("\t@%p3 red.global.gpu.relaxed.add.f32 [ %rd1 + 0 ], %r2;", 0),
        ("\t@!%p3 atom.global.gpu.acq_rel.add.f32 %r1, [ %rd1 + 0 ], %r2;", 0),
    ],
)
def test_what_may_be_fused(line, count):
    triton_resources = pytest.importorskip("bench.report.triton_resources")
    assert len(triton_resources.FUSIBLE.findall(line)) == count


# Two in CI; `make compat` compiles for all, with two versions of Triton.
@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, marks=pytest.mark.full if a in ("80", "90") else pytest.mark.slow) for a in ARCHITECTURES],
)
def test_every_kernel_compiles(architecture, tmp_path):
    """One configuration of each, float32 rows of width 512."""
    figures = tmp_path / "figures.json"
    done = compile_kernels("--quick", "--dtypes", "float32", "--architectures", architecture, "--out", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"sm_{architecture}" in done.stdout
    kernels = json.loads(figures.read_text(encoding="utf-8"))[architecture]
    assert {name.partition("<")[0] for name in kernels} == launched_kernels()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_configuration_compiles(architecture):
    done = compile_kernels("--architectures", architecture)
    assert done.returncode == 0, done.stdout + done.stderr
