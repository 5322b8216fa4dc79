"""The row statistics of pair_loss: the options that are tested, and calls with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlkernels import _checks
from dmlkernels.ops import pair_loss
from dmlkernels.ops.pair_loss import Options, Side
from dmlkernels.testing import Pairs, make_pairs

CIRCLE = Side(-80.0, 0.6, -1.0, 1.4), Side(80.0, 0.4, 1.0, -0.4)
OPTIONS = {
    "softmax": Options("similarity", "exp", Side(10.0), Side(14.0, 0.2)),
    "multi_similarity": Options("similarity", "exp", Side(-2.0, 0.5), Side(50.0, 0.5)),
    "circle": Options("similarity", "exp", *CIRCLE),
    "steep": Options("similarity", "exp", Side(-200.0, 0.5), Side(200.0, 0.5)),
    "lifted": Options("distance", "exp", Side(1.0, 0.1), Side(-1.0, 1.0)),
    "nca": Options("squared", "exp", Side(-5.0), Side(-5.0)),
    "exp_negatives": Options("similarity", "exp", None, Side(14.0)),
    "contrastive": Options("distance", "hinge", Side(1.0, 0.3), Side(-1.0, 1.2)),
    "cosine_hinge": Options("similarity", "hinge", Side(-1.0, 0.9), Side(1.0, 0.1)),
    "squared_hinge": Options("squared", "hinge", Side(0.5, 0.2), Side(-0.5, 1.5)),
    "hinge_negatives": Options("distance", "hinge", None, Side(-1.0, 1.3)),
    "softplus": Options("distance", "softplus", Side(2.0, 0.3), Side(-2.0, 1.2)),
    "softplus_positives": Options("similarity", "softplus", Side(-14.0, 0.2), None),
}


class Case(NamedTuple):
    pairs: Pairs
    options: Options
    bounds: Tensor | None
    rows: dict  # ids, ref_ids, ignore_index, normalize


def bounds_for(options: Options, m: int, seed: int = 3) -> Tensor:
    """(2, M) near the middle of the values, so that either side of them is met."""
    middle = {"similarity": 0.0, "distance": 1.4, "squared": 2.0}[options.value]
    return middle + 0.2 * torch.randn(2, m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def call(case: Case, x: Tensor, g: Tensor | None = None, bounds: Tensor | None = None) -> pair_loss.Statistics:
    rows = {"ids": None, "ref_ids": None, "ignore_index": None, "normalize": True, **case.rows}
    inputs = _checks.pair_inputs("pair_loss", x, case.pairs.labels, g, case.pairs.ref_labels, **rows)
    return pair_loss.statistics("pair_loss", inputs, case.options, case.bounds if bounds is None else bounds)


def differentiable(case: Case):
    """(M,) one number a row, of every differentiable statistic; the logarithm of nothing counts as 0."""

    def function(x: Tensor, g: Tensor | None = None) -> Tensor:
        s = call(case, x, g)
        return sum(w * torch.where(t.isinf(), 0, t) for w, t in zip((1.0, 0.7, 0.05, 0.03), s[:4]))

    return function


def case_of(name, m=9, n=None, d=4, bounded=False, device="cpu", dtype=torch.float32):
    pairs = make_pairs("random", m, n, d, 3, dtype, device=device)
    bounds = bounds_for(OPTIONS[name], m).to(device, dtype) if bounded else None
    return Case(pairs, OPTIONS[name], bounds, {})


def forward_arguments(case, pairs=None, ids=None, ref_ids=None, ignore_index=None):
    """Arguments of pair_loss_fwd."""
    return (
        *(case.pairs if pairs is None else pairs), ids, ref_ids, ignore_index, True, case.bounds,
        *case.options.arguments(), "ieee", True, False,
    )  # fmt: skip
