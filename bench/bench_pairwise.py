"""pairwise similarity and distance, fused beside the reference: pytest bench/bench_pairwise.py --benchmark-only."""

import common
import pytest

CASES = [
    common.Case(f"{operation}-{kind}-{rows}x{width}", operation, kind, rows, width)
    for operation in ("pairwise", "pairwise_distance")
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
] + [common.Case("pairwise-gallery-128x4096x128", "pairwise", "dense", 128, 128, gallery=4096)]


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
