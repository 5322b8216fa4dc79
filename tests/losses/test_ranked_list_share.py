"""Ranked list loss with `reduction="share"`: each query weighs by its share of the total weight."""

from __future__ import annotations

import pytest
import torch
from support.contract import assert_close
from support.every_loss import check_oracle
from support.pairs import tensors

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate, make_pairs

OPTIONS = {
    "default": {},
    "temperatures": {"pos_temperature": 4.0, "neg_temperature": 20.0},
    "cvpr": {"form": "cvpr", "neg_weight": 0.3},
    "easy": {"positive": "easy", "margin": 0.9},
    "pml": {"eps_mode": "pml", "weight_grad": True, "pos_temperature": 3.0},
    "ignore_index": {"ignore_index": 2},
    "query": {"grad": "query"},
}


@pytest.mark.parametrize("kind", ["self", "gallery", "ids"])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_the_formula(backend, device, name, kind):
    check_oracle("RankedListLoss", {**OPTIONS[name], "reduction": "share"}, kind, device)


@pytest.mark.parametrize("n", [None, 30], ids=["self", "gallery"])
def test_every_listed_pair_is_the_loss(backend, device, n):
    pairs = make_pairs("random", 40, n, 6, 5, torch.float64, seed=3, device=device)
    same: torch.Tensor = pairs.labels[:, None] == (pairs.labels if n is None else pairs.ref_labels)
    other = ~torch.eye(40, dtype=torch.bool, device=device) if n is None else torch.ones_like(same)
    lists = (*(same & other).nonzero(as_tuple=True), *(~same).nonzero(as_tuple=True))
    loss = losses.RankedListLoss(reduction="share", neg_temperature=3.0)

    def of(indices):
        return lambda x, g=None: loss(x, pairs.labels, indices, g, pairs.ref_labels)

    assert_close(evaluate(of(lists), tensors(pairs)), evaluate(of(None), tensors(pairs)), factor=4096.0)


@pytest.mark.parametrize("labels", ["one_class", "distinct"])
def test_no_query_has_a_set(backend, device, labels):
    """Collapsed positives and far negatives cost nothing: value and gradient are 0, and not NaN."""
    x = torch.eye(8, dtype=torch.float64, device=device) if labels == "distinct" else torch.ones(8, 8, device=device)
    y = torch.arange(8, device=device) if labels == "distinct" else torch.zeros(8, dtype=torch.int64, device=device)
    outcome = evaluate(lambda x: F.ranked_list_loss(x, y, reduction="share"), [x])
    assert float(outcome.value) == 0
    assert not bool(outcome.grads[0].any())


def test_queries_without_a_set_weigh_nothing(backend, device):
    """Far rows of their own classes beside a batch change neither its value nor its gradient."""
    pairs = make_pairs("random", 20, None, 6, 5, torch.float64, seed=4, device=device)
    x = torch.nn.functional.pad(pairs.embeddings, (0, 30))
    far = torch.cat([torch.zeros(30, 6), torch.eye(30)], 1).to(x)
    y = torch.cat([pairs.labels, 100 + torch.arange(30, device=device)])
    alone = evaluate(lambda x: F.ranked_list_loss(x, pairs.labels, reduction="share"), [x])
    beside = evaluate(lambda x: F.ranked_list_loss(torch.cat([x, far]), y, reduction="share"), [x])
    assert_close(beside, alone, factor=64.0)


def test_a_row_that_is_not_finite_makes_it_nan(backend, device):
    pairs = make_pairs("random", 20, d=6, device=device)
    pairs.embeddings[3] = torch.nan
    assert bool(F.ranked_list_loss(*pairs[:2], reduction="share").isnan())
