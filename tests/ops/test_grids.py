"""Sides of a batch, a gallery or a row that are longer than what y and z of a grid hold: every launch is one that a
device takes. On cuda-host launches of this size are checked, and not run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cuda_host.backend import cannot_build, load, only_check_launches
from support import settings
from support.contract import Recorder
from torch import Tensor

from dmlkernels import _checks, use_backend
from dmlkernels import functional as F
from dmlkernels._contract import SCHEMAS
from dmlkernels.ops.distance_weighted import sample_negatives

pytestmark = pytest.mark.skipif(
    cannot_build() is not None and os.environ.get("DMLKERNELS_REQUIRE_NATIVE") != "1", reason=str(cannot_build())
)

LONG = 65_535 * 128 + 1  # one row beyond 65,535 tiles of them
SIDES = {"queries": (LONG, 3, 2), "gallery": (3, LONG, 2), "width": (1, 1, LONG)}  # M, N, D


def _drawn(x: Tensor, y: Tensor, g: Tensor, h: Tensor) -> Tensor:
    uniforms = torch.zeros(len(x), 1, dtype=torch.float64)
    return sample_negatives("margin_loss", _checks.pair_inputs("margin_loss", x, y, g, h), uniforms)


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "pairwise": lambda x, y, g, h: F.pairwise_distance(x, g),
    "pair_loss": lambda x, y, g, h: F.ntxent_loss(x, y, g, h),
    "triplet": lambda x, y, g, h: F.triplet_loss(x, y, g, h, positive="all", negative="all"),
    "triplet_semihard": lambda x, y, g, h: F.triplet_loss(x, y, g, h, positive="all", negative="semihard"),
    "nearest_positive": lambda x, y, g, h: F.nearest_positive(x, y, g, h).distance,
    "mine": lambda x, y, g, h: F.mine(x, y, g, h).neg_distance,
    "distance_weighted": _drawn,
    "soft_triple": lambda x, y, g, h: F.soft_triple_loss(x, y, g, centers_per_class=1),
    "spherical_expansion": lambda x, y, g, h: (
        F.spherical_expansion(x, y, g, n=1, noise=x.detach()[:, None][:, :0], differentiable=True).embeddings
    ),
    "cholesky": lambda x, y, g, h: F.cholesky_logdet(x[:, :1, None]),
    "coding_rate": lambda x, y, g, h: F.coding_rate(x),
    "class_rate": lambda x, y, g, h: F.class_coding_rate(x, y),
}


@pytest.fixture
def on_host() -> Iterator[None]:
    load()
    # Deterministic algorithms would fill every new tensor.
    with use_backend("cuda-host"), only_check_launches(), settings.deterministic(False):
        yield


def call(name: str, m: int, n: int, d: int) -> None:
    """Forward and backward."""
    x, g = torch.zeros(m, d, requires_grad=True), torch.zeros(n, d, requires_grad=True)
    y, h = (torch.zeros(rows, dtype=torch.int64) for rows in (m, n))
    out = CALLS[name](x, y, g, h)
    if out.requires_grad:
        out.sum().backward()


def cases() -> Iterator[Any]:
    """What takes seconds, most of them for memory, is left to the full tier."""
    for name, side in itertools.product(CALLS, SIDES):
        quick = (name, side) in {("pairwise", "gallery"), ("pairwise", "width"), ("mine", "gallery")}
        yield pytest.param(name, side, marks=() if quick else pytest.mark.full)


@pytest.mark.parametrize(("name", "side"), list(cases()))
def test_a_device_takes_every_launch(on_host, name, side):
    call(name, *SIDES[side])


def test_every_operator_is_tried(on_host):
    with Recorder() as recorder:
        for name in CALLS:
            call(name, 3, 3, 2)
    assert {f"dmlkernels_cuda_host.{op}.default" for op in SCHEMAS} <= set(recorder.names)
