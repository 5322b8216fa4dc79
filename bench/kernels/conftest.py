"""Every case of a bench_*.py, fused beside the reference; both agree before either is timed.

pytest bench/kernels/bench_pairwise.py --benchmark-only
"""

from __future__ import annotations

import pytest

from bench.kernels.batches import active_shares, assert_share
from bench.kernels.cases import Case
from bench.kernels.timing import assert_rivals_agree


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = metafunc.module.CASES
    metafunc.parametrize("case", cases, indirect=True, scope="module", ids=[case.name for case in cases])
    metafunc.parametrize("contender", ["fused", "reference"])


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    if request.param.operation == "ranked_list":
        pairs, _ = active_shares(request.param.batch())
        assert_share(request.param.kind, pairs)
    assert_rivals_agree(request.param)
    return request.param
