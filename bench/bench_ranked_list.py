"""Ranked List Loss, fused beside the reference: pytest bench/bench_ranked_list.py --benchmark-only."""

import common
import pytest

CASES = [
    common.Case(f"{kind}-{rows}x{width}", "ranked_list", kind, rows, width)
    for kind in common.SHARE
    for rows, width in ((512, 64), (2048, 128))
] + [common.Case("gallery-128x4096x128", "ranked_list", "dense", 128, 128, gallery=4096)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    pairs, _ = common.active_shares(request.param.batch())
    common.assert_share(request.param.kind, pairs)
    common.assert_rivals_agree(request.param)
    return request.param


@pytest.mark.parametrize("contender", ["fused", "reference"])
def test_forward(benchmark, case, contender):
    common.time_forward(benchmark, case, contender)


@pytest.mark.parametrize("contender", ["fused", "reference"])
def test_backward(benchmark, case, contender):
    common.time_backward(benchmark, case, contender)
