"""nearest_positive and mine, fused beside the reference: pytest bench/bench_nearest_positive.py --benchmark-only."""

import common
import pytest

CASES = [
    common.Case(f"{operation}-{kind}-{rows}x{width}", operation, kind, rows, width)
    for operation in ("nearest_positive", "mine_hard", "mine_semihard")
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
] + [common.Case("nearest_positive-gallery-128x4096x128", "nearest_positive", "dense", 128, 128, gallery=4096)]


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
