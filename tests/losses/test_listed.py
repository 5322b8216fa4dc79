"""Pairs and triplets that are listed: what is refused, and where pytorch-metric-learning counts otherwise."""

from __future__ import annotations

import re

import pytest
import torch

from dmlkernels import losses

LISTERS = [losses.RankedListLoss, losses.TripletMarginLoss, losses.ContrastiveLoss, losses.SupConLoss]


@pytest.mark.parametrize("module", LISTERS)
def test_lists_that_are_none(module):
    """A number that is of no row would name another pair, and a list of one would meet all of the other."""
    x, y = torch.randn(6, 4), torch.arange(6) // 2
    one = torch.tensor([0])
    for lists, word in (
        (([0], [1], [2]), "of 1-dimensional integer tensors, got list"),
        ((one, one + 1, one.float()), "of 1-dimensional integer tensors, got torch.float32"),
        ((one, one[:, None], one), "of 1-dimensional integer tensors, got torch.int64"),
        ((one, torch.tensor([1, 1]), one, one + 2), "of lists as long as those of their anchors, got lengths"),
        ((one, one + 1, torch.tensor([2, 3])), "of lists as long as those of their anchors, got lengths"),
        ((one, one + 9, one, one + 2), "of rows in [0, 6), got 9"),
        ((one, one + 1, one - 1, one + 2), "of rows in [0, 6), got -1"),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{module.__name__}: indices_tuple must be {word}")):
            module()(x, y, lists)
    with pytest.raises(ValueError, match=re.escape("of rows in [0, 3), got 3")):
        module()(x, y, (one + 5, one + 2, one + 3), x[:3], y[:3])
    wanted = module()(x, y, (one, one + 1, one, one + 2))
    assert torch.equal(module()(x, y, tuple(k.to(torch.int32) for k in (one, one + 1, one, one + 2))), wanted)


ONE_PAIR = ["ContrastiveLoss", "MultiSimilarityLoss", "NTXentLoss", "SupConLoss", "CircleLoss"]


@pytest.mark.parametrize("name", [*ONE_PAIR, "GeneralizedLiftedStructureLoss"])
def test_one_pair_of_each_kind_counts(name):
    """In pytorch-metric-learning it is 0, and with either pair listed twice what it is here."""
    theirs = getattr(pytest.importorskip("pytorch_metric_learning.losses"), name)()
    x = torch.tensor([[1.0, 0.2], [0.9, 0.5], [0.8, 0.9]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1])
    once = tuple(torch.tensor([k]) for k in (0, 1, 0, 2))
    twice = tuple(k.repeat(2) for k in once)
    assert float(theirs(x, y, once)) == 0
    loss = getattr(losses, name)()
    assert float(loss(x, y, once)) > 0
    torch.testing.assert_close(loss(x, y, twice), theirs(x, y, twice))


def test_swap_against_a_gallery():
    """The distance of the positive and the negative, both of the gallery."""
    x, g = torch.eye(3, dtype=torch.float64)[:1], torch.tensor([[0.0, 1, 0], [1, 1, 0], [0, 0, 1]]).double()
    loss = losses.TripletMarginLoss(margin=2.0, swap=True, normalize=False)
    lists = (torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    value = loss(x, torch.tensor([0]), lists, g, torch.tensor([0, 1, 1]))
    assert value.item() == pytest.approx(2**0.5 - 1 + 2)
    lists = (torch.tensor([0]), torch.tensor([1]), torch.tensor([0]))
    value = loss(x, torch.tensor([0]), lists, g, torch.tensor([1, 0, 1]))
    assert value.item() == pytest.approx(1 - min(2**0.5, 1.0) + 2)
