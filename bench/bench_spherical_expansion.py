"""spherical_expansion, fused beside the reference: pytest bench/bench_spherical_expansion.py --benchmark-only."""

import common
import pytest

CASES = [
    common.Case(f"spherical_expansion-{kind}-{rows}x{width}", "spherical_expansion", kind, rows, width)
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    common.assert_rivals_agree(request.param)
    return request.param


@pytest.mark.parametrize("contender", ["fused", "reference"])
def test_forward(benchmark, case, contender):
    common.time_forward(benchmark, case, contender)


@pytest.mark.parametrize("contender", ["fused", "reference"])
def test_backward(benchmark, case, contender):
    common.time_backward(benchmark, case, contender)
