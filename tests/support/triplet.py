"""The triplet operator: the options that are tested, and data off its hinges."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from support import brute_force
from support.pairs import tensors

from dmlkernels import _checks
from dmlkernels.ops.triplet import triplets
from dmlkernels.reference.pairwise import distance
from dmlkernels.reference.pairwise import rows as unit_rows
from dmlkernels.testing import BAND, Pairs, assert_matches, make_pairs

OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "all_wide": {"margin": 2.5},
    "all_negative_margin": {"margin": -0.1},
    "all_soft": {"soft": True},
    "semihard": {"negative": "semihard"},
    "semihard_soft": {"negative": "semihard", "soft": True},
    "unnormalized": {"normalize": False, "margin": 1.0},
    "semihard_unnormalized": {"negative": "semihard", "normalize": False, "margin": 1.0},
}


def found(pairs, x, g=None, *, negative="all", margin=0.3, soft=False, check_finite=False, **more):
    inputs = _checks.pair_inputs("triplet", x, pairs.labels, g, pairs.ref_labels, **more)
    return triplets("triplet", inputs, negative, margin, soft, check_finite)


def loss(pairs: Pairs, **options):
    """Summed loss per anchor as a function of the embeddings, and of the gallery if there is one."""
    return lambda x, g=None: found(pairs, x, g, **options).loss_sum


def exact_distances(pairs: Pairs, normalize=True):
    f, g = (None if t is None else unit_rows(t.double(), normalize) for t in (pairs.embeddings, pairs.ref_emb))
    return distance(f, f if g is None else g)


def clear(pairs: Pairs, options) -> bool:
    """Whether no triplet is so near to the hinge, or to another choice, that rounding decides."""
    d = exact_distances(pairs, options.get("normalize", True))
    eps = torch.finfo(torch.promote_types(pairs.embeddings.dtype, torch.float32)).eps
    band = BAND * eps * float(d.max().clamp_min(1))
    margin, semihard = options.get("margin", 0.3), options.get("negative") == "semihard"
    same = pairs.labels[:, None] == (pairs.labels if pairs.ref_labels is None else pairs.ref_labels)[None, :]
    if pairs.ref_emb is None:
        d = d.fill_diagonal_(torch.inf)
    for row, positive in zip(d, same, strict=True):
        p, n = row[positive & row.isfinite()], row[~positive]
        gaps = [] if options.get("soft") else [p[:, None] + margin - n[None, :]]
        if semihard and len(n) > 1:
            gaps += [p[:, None] - n[None, :], n.sort().values.diff()]
        if any(bool((gap.abs() <= band).any()) for gap in gaps):
            return False
    return True


def draw(kind="random", m=130, n=None, d=16, options=None, seed=0, **more) -> Pairs:
    for attempt in range(60):
        pairs = make_pairs(kind, m, n, d, seed=seed + 7919 * attempt, **more)
        if clear(pairs, options or {}):
            return pairs
    raise AssertionError("every draw has a triplet on the hinge: take fewer rows")


def match(pairs: Pairs, options=None, **rule):
    options = options or {}
    # An anchor adds up to a number of terms of size 1.
    count = float(found(pairs, *tensors(pairs), **options).count.max()) if len(pairs.labels) else 1.0
    rule = {"scale": max(count, 1.0), "normalize": options.get("normalize", True), **rule}
    return assert_matches(loss(pairs, **options), tensors(pairs), **rule)


def by_hand(problem, incoming, negative="all", margin=0.3, soft=False, normalize=True):
    """Sums, numbers of triplets that cost something and of all, and gradients, from the list of triplets."""
    m = len(problem.y)
    sums, nonzero, count, coefficients = np.zeros(m), [0] * m, [0] * m, {}
    for a, p, n in brute_force.triplets(problem, "all", negative):
        violation = problem.d[a][p] - problem.d[a][n] + margin
        term = np.logaddexp(violation, 0) if soft else max(violation, 0)
        slope = 1 / (1 + np.exp(-violation)) if soft else float(violation > 0)
        sums[a], nonzero[a], count[a] = sums[a] + term, nonzero[a] + int(term > 0), count[a] + 1
        coefficients[a, p] = coefficients.get((a, p), 0) + incoming[a] * slope
        coefficients[a, n] = coefficients.get((a, n), 0) - incoming[a] * slope
    return sums, nonzero, count, problem.scatter(coefficients)
