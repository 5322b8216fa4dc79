"""The row statistics of pair_loss: the options that are tested, and calls with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlkernels import _checks
from dmlkernels._contract import OPERATORS
from dmlkernels.ops import pair_loss
from dmlkernels.ops.pair_loss import Options, Side
from dmlkernels.testing import Pairs, make_pairs

OPTIONS = {
    "softmax": Options("similarity", Side("exp", 10.0), Side("exp", 14.0, 0.2)),
    "multi_similarity": Options("similarity", Side("exp", -2.0, 0.5), Side("exp", 50.0, 0.5)),
    "circle": Options("similarity", Side("exp", -80.0, 0.6, -1.0, 1.4), Side("exp", 80.0, 0.4, 1.0, -0.4)),
    "steep": Options("similarity", Side("exp", -200.0, 0.5), Side("exp", 200.0, 0.5)),
    "lifted": Options("distance", Side("exp", 1.0, 0.1), Side("exp", -1.0, 1.0)),
    "nca": Options("squared", Side("exp", -5.0), Side("exp", -5.0)),
    "exp_negatives": Options("similarity", None, Side("exp", 14.0)),
    "contrastive": Options("distance", Side("hinge", 1.0, 0.3), Side("hinge", -1.0, 1.2)),
    "cosine_hinge": Options("similarity", Side("hinge", -1.0, 0.9), Side("hinge", 1.0, 0.1)),
    "squared_hinge": Options("squared", Side("hinge", 0.5, 0.2), Side("hinge", -0.5, 1.5)),
    "hinge_negatives": Options("distance", None, Side("hinge", -1.0, 1.3)),
    "softplus": Options("distance", Side("softplus", 2.0, 0.3), Side("softplus", -2.0, 1.2)),
    "softplus_positives": Options("similarity", Side("softplus", -14.0, 0.2), None),
    "ranked": Options("distance", Side("moment", 1.0, 0.8), Side("moment", -1.0, 1.2, temperature=10.0)),
    "ranked_weights": Options(
        "distance",
        Side("moment", 1.0, 0.7, temperature=3.0),
        Side("moment", -1.0, 1.3, temperature=-4.0),
        weight_grad=True,
    ),
    "ranked_steep": Options(
        "distance",
        Side("moment", 1.0, 0.5, temperature=200.0),
        Side("moment", -1.0, 1.5, temperature=90.0),
        weight_grad=True,
    ),
    "ranked_query": Options(
        "distance",
        Side("moment", 1.0, 0.8, temperature=2.0),
        Side("moment", -1.0, 1.2, temperature=10.0),
        weight_grad=True,
        grad="query",
    ),
    "squared_moment": Options("squared", None, Side("moment", -0.5, 1.9, temperature=3.0), weight_grad=True),
    "cosine_moment": Options("similarity", Side("moment", -1.0, 0.9), None),
    "query": Options("similarity", Side("exp", 10.0), Side("exp", 14.0, 0.2), grad="query"),
    "hinge_and_exp": Options("distance", Side("hinge", 1.0, 0.5), Side("exp", -6.0, 1.0)),
    "softplus_and_moment": Options(
        "distance", Side("softplus", 2.0, 0.3), Side("moment", -1.0, 1.3, temperature=5.0), weight_grad=True
    ),
    "exp_and_softplus": Options("similarity", Side("exp", -9.0, 0.3), Side("softplus", 12.0, 0.1), grad="query"),
    "apart": Options("distance", Side("moment", 1.0, 0.0), Side("hinge", -1.0, 1.4), apart=True),
}


class Case(NamedTuple):
    pairs: Pairs
    options: Options
    bounds: Tensor | None
    rows: dict  # ids, ref_ids, ignore_index, normalize


def has_moment(options: Options) -> bool:
    return any(side is not None and side.term == "moment" for side in (options.pos, options.neg))


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
        weights = (1.0, 0.7, 0.02, 0.03, 0.05, 0.03)
        return torch.stack([w * torch.where(t.isinf(), 0, t) for w, t in zip(weights, s[:6])]).sum(0)

    return function


def case_of(name, m=9, n=None, d=4, bounded=False, device="cpu", dtype=torch.float32):
    pairs = make_pairs("random", m, n, d, 3, dtype, device=device)
    bounds = bounds_for(OPTIONS[name], m).to(device, dtype) if bounded else None
    return Case(pairs, OPTIONS[name], bounds, {})


def forward_arguments(case, pairs=None, ids=None, ref_ids=None, ignore_index=None):
    """Arguments of pair_loss_fwd by name."""
    return OPERATORS["pair_loss_fwd"].named((
        *(case.pairs if pairs is None else pairs), ids, ref_ids, ignore_index, True, case.bounds,
        *case.options.arguments(), "ieee", True, False,
    ))  # fmt: skip
