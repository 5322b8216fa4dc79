"""Each instruction set that this processor has computes the same thing; a request for another is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dmlkernels import _backend

pytestmark = pytest.mark.skipif("cpu" not in _backend.loaded["native"], reason="no native library")

TESTS = Path(__file__).parents[1]
LEVELS = ("plain", "avx2", "avx512")

CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import dmlkernels
from dmlkernels import _C
from dmlkernels.testing import make_pairs
from support import distance_weighted, nearest_positive, pairwise, ranked_list

torch.set_num_threads(1)
dmlkernels.set_backend("native")
print(_C.cpu_capability())
count = 0
for case in sys.argv[2:]:
    dtype, _, n = case.partition(" ")
    dtype, n = getattr(torch, dtype), int(n) if n else None
    for name in ("default", "weight_grad", "query", "easy", "pml_constant", "unnormalized"):
        options = ranked_list.OPTIONS[name]
        pairs = ranked_list.draw("random", 141, n, 13, options, dtype=dtype, seed=1, classes=9)
        ranked_list.match(pairs, options)
        count += 1
    hot = {"pos_temperature": 200.0, "neg_temperature": 200.0}
    exponent = 240.0 if dtype == torch.float64 else 1.0
    pairs = ranked_list.draw("random", 141, n, 13, dtype=dtype, seed=2)
    ranked_list.match(pairs, hot, max_quiet=1.0, exponent=exponent)
    for choice in nearest_positive.CHOICES:
        for kind in ("random", "duplicates"):
            nearest_positive.match(choice, make_pairs(kind, 141, n, 13, 9, dtype, seed=3))
            count += 1
    for name in ("cosine", "unit_euclidean", "squared"):
        pairwise.match(name, pairwise.rows("duplicates", 70, n, 13, dtype, 4), max_quiet=0.2)
        count += 1
    spread = make_pairs("random", 141, n, 13, 9, dtype, seed=5, avoid=[distance_weighted.FAR])
    distance_weighted.check(spread, distance_weighted.grid(141, 33))
    count += 1
print(count)
"""


def run(level: str, code: str = CODE, cases: Sequence[str] = ()) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, str(TESTS), *cases],
        env={**os.environ, "DMLKERNELS_CPU_ISA": level},
        capture_output=True,
        text=True,
        timeout=300,
    )


# A dtype, and rows of a gallery if there is one.
CASES = ("float64 133", "float32", "float32 133", "bfloat16")
MORE = ("float64", "bfloat16 133")


@pytest.mark.parametrize("cases", [CASES, pytest.param(MORE, marks=pytest.mark.full)], ids=["few", "more"])
@pytest.mark.parametrize("level", LEVELS)
def test_level(level, cases):
    done = run(level, cases=cases)
    if "this build on this processor supports at most" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level, str(20 * len(cases))]


def test_unknown_level():
    """Refused by the first operator, in a sentence, and not by the end of the process."""
    code = "import torch; from dmlkernels import functional as F; F.pairwise_similarity(torch.eye(2))"
    done = run("sse9", code)
    assert done.returncode == 1
    assert 'DMLKERNELS_CPU_ISA must be plain, avx2 or avx512, got "sse9"' in done.stderr.splitlines()[-1]
