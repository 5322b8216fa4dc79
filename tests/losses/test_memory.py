"""No loss holds anything of N × N, forward or backward: neither numbers nor a mask."""

from __future__ import annotations

import pytest
import torch
from support.every_loss import PAIRS, PROXIES, make

from dmlkernels import _backend, use_backend
from dmlkernels.train.measure import peak_extra_bytes

ROWS, WIDTH, PER_CLASS = 8192, 32, 8
MASK = ROWS * ROWS  # bytes of one bool for each pair
# A batch is 1 MB, a partial sum of the gradient of few row tiles as much again for each of up to 16 parts; a huge page
# that is touched counts 2 MB.
ALLOWED = 32e6


@pytest.fixture(autouse=True)
def native():
    if "cpu" not in _backend.loaded["native"]:
        pytest.skip("no native kernels")
    with use_backend("native"):
        yield


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) // PER_CLASS)[torch.randperm(count, generator=generator)]
    return torch.randn(count, WIDTH, generator=generator), labels


def peak(loss: torch.nn.Module, gallery: bool) -> int:
    def step(count: int) -> None:
        x, labels = rows(count, 0)
        more = {}
        if gallery:
            g, h = rows(count, 1)
            more = {"ref_emb": g.requires_grad_(), "ref_labels": h}
        loss(x.requires_grad_(), labels, **more).backward()

    found = peak_extra_bytes(lambda: step(ROWS), lambda: step(64))
    if found is None:
        pytest.skip("this system has no high-water mark of memory that can be reset")
    return found


def test_a_mask_would_be_seen():
    assert MASK > 2 * ALLOWED
    assert peak_extra_bytes(lambda: torch.ones(ROWS, ROWS, dtype=torch.bool)) > 2 * ALLOWED


@pytest.mark.parametrize("gallery", [False, True], ids=["self", "reference"])
@pytest.mark.parametrize("name", sorted(set(PAIRS) - set(PROXIES)))
def test_pair_loss(name, gallery):
    assert peak(make(name), gallery) < ALLOWED


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(set(PAIRS) - set(PROXIES)))
def test_easy_positives(name):
    more = {"negative": "hard"} if name == "TripletMarginLoss" else {}
    assert peak(make(name, positive="easy", **more), False) < ALLOWED


@pytest.mark.parametrize("name", PROXIES)
def test_loss_with_proxies(name):
    assert peak(make(name, classes=ROWS // PER_CLASS, width=WIDTH), False) < ALLOWED


@pytest.mark.parametrize("gallery", [False, True], ids=["self", "reference"])
def test_drawn_negatives(gallery):
    loss = make("MarginLoss", positive="easy", negative="distance_weighted")
    assert peak(loss, gallery) < ALLOWED
