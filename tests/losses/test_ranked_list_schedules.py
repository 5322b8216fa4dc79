"""ranked_list over mirrored tiles: each unordered pair of tiles is computed once, and gives both of its ends their due.

The kernels of CUDA add such tiles by atomics, and only where the user has not asked for deterministic algorithms. The
tests everywhere else do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support import settings
from support.ranked_list import OPTIONS, draw, match, statistics


@pytest.fixture(autouse=True)
def any_order() -> Iterator[None]:
    with settings.deterministic(False):
        yield


@pytest.mark.parametrize("m", [129, 256, 300, 400, 513], ids=lambda m: f"{-(-m // 128)}-tiles-{m}")
def test_numbers_of_tiles(kernel, device, m):
    """Rings of even and odd length: opposite tiles of an even ring meet once."""
    match(draw("random", m, None, 8, classes=20, seed=1, device=device))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(
    "name", ["temperatures", "plain_means", "weight_grad", "query", "easy", "easy_weight_grad", "pml"]
)
def test_options(kernel, device, name, dtype):
    options = OPTIONS[name]
    match(draw("random", 260, None, 8, options, classes=9, dtype=dtype, seed=2, device=device), options)


@pytest.mark.parametrize("name", ["default", "easy"])
def test_totals_count_both_ends(kernel, device, name):
    pairs = draw("random", 300, None, 8, OPTIONS[name], classes=9, dtype=torch.float64, seed=3, device=device)
    mirrored = statistics(pairs, OPTIONS[name])
    with settings.deterministic(True):
        full = statistics(pairs, OPTIONS[name])
    assert mirrored == pytest.approx(full, rel=1e-12)


def test_ignored_rows(kernel, device):
    pairs = draw("random", 300, None, 8, classes=9, seed=4, device=device)
    match(pairs, {"ignore_index": 3})
