"""How many kernels a loss launches; what the tensors hold changes nothing of it: a CUDA graph can repeat it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from cuda_host.backend import cannot_build, load, recorded_launches
from support import settings
from torch import Tensor

from dmlkernels import functional as F
from dmlkernels import use_backend

pytestmark = pytest.mark.skipif(
    cannot_build() is not None and os.environ.get("DMLKERNELS_REQUIRE_NATIVE") != "1", reason=str(cannot_build())
)

# Operators that a loss is made of, each with a forward and a backward.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "ranked_list": (F.ranked_list_loss, 1),
    "ranked_list_easy": (lambda x, y: F.ranked_list_loss(x, y, positive="easy"), 2),
    "contrastive": (F.contrastive_loss, 1),
    "multi_similarity": (lambda x, y: F.multi_similarity_loss(x, y, epsilon=None), 1),
    "circle": (F.circle_loss, 1),
    "ntxent": (F.ntxent_loss, 2),
    "supcon": (F.supcon_loss, 2),
}
MOST = 10  # of an operator of pair losses, forward and backward, while its weights are one stripe
MOST_OF_STRIPE = 4
STRIPES = (8192, 128)  # rows and features, for which there are several


def launches(loss: Callable[[Tensor, Tensor], Tensor], rows: int, width: int, seed: int | None = None) -> list:
    load()
    generator = torch.Generator().manual_seed(seed or 0)
    x = torch.zeros(rows, width, dtype=torch.bfloat16)
    y = torch.zeros(rows, dtype=torch.int64)
    if seed is not None:
        x = torch.randn(x.shape, generator=generator).to(x.dtype)
        y = torch.randint(rows // 4, y.shape, generator=generator)
    x.requires_grad_()
    with use_backend("cuda-host"), settings.deterministic(False), recorded_launches() as found:
        loss(x, y).backward()
    return found


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [16, 512, 2048])
def test_a_small_batch_launches_few(name, rows):
    loss, operators = LOSSES[name]
    assert 0 < len(launches(loss, rows, 32)) <= MOST * operators


@pytest.mark.parametrize("name", ["ranked_list", "ntxent"])
def test_a_stripe_launches_few(name):
    loss, operators = LOSSES[name]
    times = Counter(kernel for kernel, _, _ in launches(loss, *STRIPES))
    once = Counter(kernel for kernel, _, _ in launches(loss, 2048, STRIPES[1]))
    repeated = {kernel: number for kernel, number in times.items() if number > once[kernel]}
    assert repeated
    assert len(repeated) <= MOST_OF_STRIPE
    assert sum(times.values()) - sum(repeated.values()) <= MOST * operators


@pytest.mark.parametrize("name", LOSSES)
def test_the_data_change_no_launch(name):
    """Kernels, grids and blocks in their order: nothing of them is read on the host."""
    loss, _ = LOSSES[name]
    zeros, one, two = (launches(loss, 2100, 32, seed) for seed in (None, 1, 2))
    assert zeros == one == two
