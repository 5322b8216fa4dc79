"""The ranked list loss: the options that are tested, and data off its boundaries."""

from __future__ import annotations

from typing import Any

from support.pairs import tensors

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import (
    Pairs,
    assert_matches,
    make_pairs,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "temperatures": {"pos_temperature": 5.0, "neg_temperature": 20.0},
    "plain_means": {"neg_temperature": 0.0},
    "inverted": {"pos_temperature": -4.0, "neg_temperature": -3.0},
    "tight": {"alpha": 1.4, "margin": 0.2},
    "every_positive": {"alpha": 0.9, "margin": 1.0},
    "pml_every_positive": {"eps_mode": "pml", "alpha": 0.9, "margin": 1.0},
    "pml_easy": {"eps_mode": "pml", "positive": "easy", "margin": 1.0, "weight_grad": True, "pos_temperature": 5.0},
    "no_negative": {"alpha": -0.5, "margin": 0.5},
    "cvpr": {"form": "cvpr"},
    "cvpr_weighted": {"form": "cvpr", "neg_weight": 0.3},
    "positives_only": {"neg_weight": 0.0, "pos_temperature": 2.0},
    "negatives_only": {"neg_weight": 1.0},
    "weight_grad": {"weight_grad": True, "pos_temperature": 3.0},
    "query": {"grad": "query", "pos_temperature": 3.0},
    "query_weight_grad": {"grad": "query", "weight_grad": True},
    "easy": {"positive": "easy", "margin": 0.8, "alpha": 1.2},
    "easy_weight_grad": {"positive": "easy", "margin": 1.0, "alpha": 1.2, "weight_grad": True, "pos_temperature": 2.0},
    "pml": {"eps_mode": "pml", "weight_grad": True},
    "pml_constant": {"eps_mode": "pml", "pos_temperature": 4.0},
    "unnormalized": {"normalize": False, "alpha": 5.0, "margin": 1.0, "neg_temperature": 1.0, "pos_temperature": 0.5},
}


def boundaries(options):
    alpha = options.get("alpha", 1 + options.get("margin", 0.4) / 2)
    return alpha, alpha - options.get("margin", 0.4)


def draw(kind="random", m=130, n=None, d=16, options=None, **more) -> Pairs:
    options = options or {}
    return make_pairs(kind, m, n, d, avoid=boundaries(options), normalize=options.get("normalize", True), **more)


def loss(pairs: Pairs, **options):
    """Loss per row as a function of the embeddings, and of the gallery if there is one."""
    options = {"reduction": "none", **options}
    return lambda x, g=None: F.ranked_list_loss(x, pairs.labels, g, pairs.ref_labels, **options)


def match(pairs: Pairs, options=None, **rule):
    options = options or {}
    rule = {"scale": abs(boundaries(options)[0]), "normalize": options.get("normalize", True), **rule}
    return assert_matches(loss(pairs, **options), tensors(pairs), **rule)


def statistics(pairs: Pairs, options, **ids):
    """Sizes and summed distances of the non-trivial sets, from what the module keeps."""
    module = losses.RankedListLoss(**options)
    module(pairs.embeddings, pairs.labels, None, pairs.ref_emb, pairs.ref_labels, **ids)
    counts = [float(module.last_stats[f"active_{side}tives"]) for side in ("posi", "nega")]
    means = [float(module.last_stats[f"mean_{side}_distance"]) for side in ("pos", "neg")]
    return [*counts, *(mean * count for mean, count in zip(means, counts, strict=True))]
