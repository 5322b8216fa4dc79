"""coding_rate and cholesky, fused beside the reference: pytest bench/bench_coding_rate.py --benchmark-only."""

import common
import pytest

CASES = [
    common.Case(f"{operation}-{rows}x{width}", operation, "dense", rows, width)
    for operation in ("coding_rate", "class_coding_rate", "cholesky")
    for rows, width in ((512, 64), (2048, 128), (256, 512))
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
