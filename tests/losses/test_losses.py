"""Modules and miners: RankedListLoss, TripletMarginLoss, PairMiner, F.triplet_loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import brute_force, contract
from support.pairs import all_pairs, ids_of, module_of, problem_of, tensors
from support.triplet_losses import ALL_WORDS, KERNEL_WORDS, check_triplet

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses, miners
from dmlkernels.testing import assert_matches, evaluate, make_pairs

# RankedListLoss.


@pytest.mark.parametrize("n", [None, 40], ids=["self", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"margin": 0.2, "alpha": 1.4, "neg_temperature": 12.0, "pos_temperature": 2.0},
        {"form": "cvpr", "neg_weight": 0.7, "reduction": "sum"},
        {"weight_grad": True, "grad": "query", "reduction": "none"},
        {"positive": "easy", "margin": 0.9, "eps_mode": "pml"},
        {"normalize": False, "alpha": 4.0, "ignore_index": 2},
    ],
    ids=lambda o: "-".join(o) or "default",
)
def test_ranked_list_module_is_the_function(backend, device, options, n):
    pairs = make_pairs("random", 60, n, 6, 5, seed=1, device=device)
    module, ids = losses.RankedListLoss(**options), ids_of(pairs)

    def function(x, g=None):
        return F.ranked_list_loss(x, pairs.labels, g, pairs.ref_labels, **options, **ids)

    contract.assert_identical(
        evaluate(module_of(module, pairs, **ids), tensors(pairs)), evaluate(function, tensors(pairs))
    )


def test_defaults_are_rll_simpler(backend, device):
    pairs = make_pairs("random", 60, d=6, device=device)
    spelled = F.ranked_list_loss(
        *pairs[:2], alpha=1.2, margin=0.4, pos_temperature=0.0, neg_temperature=10.0, neg_weight=0.5, reduction="mean"
    )
    assert torch.equal(losses.RankedListLoss()(*pairs[:2]), spelled)
    assert torch.equal(F.ranked_list_loss(*pairs[:2]), spelled)
    cvpr = F.ranked_list_loss(*pairs[:2], form="cvpr", reduction="sum")
    torch.testing.assert_close(cvpr / 120, spelled)


@pytest.mark.parametrize("n", [None, 30], ids=["self", "reference"])
def test_ranked_list_statistics(backend, device, n):
    pairs = make_pairs("random", 40, n, 6, 5, torch.float64, seed=2, device=device)
    module = losses.RankedListLoss()
    module(pairs.embeddings.requires_grad_(), pairs.labels, None, pairs.ref_emb, pairs.ref_labels)
    pairs.embeddings.requires_grad_(False)
    p = problem_of(pairs)
    pos = [p.d[i][j] for i in range(40) for j in p.positives(i) if p.d[i][j] > 0.8]
    neg = [p.d[i][j] for i in range(40) for j in p.negatives(i) if p.d[i][j] < 1.2]
    stats = module.last_stats
    assert {k: v.shape for k, v in stats.items()} == dict.fromkeys(stats, ())
    assert not any(v.requires_grad for v in stats.values())
    assert (int(stats["active_positives"]), int(stats["active_negatives"])) == (len(pos), len(neg))
    assert float(stats["mean_pos_distance"]) == pytest.approx(np.mean(pos))
    assert float(stats["mean_neg_distance"]) == pytest.approx(np.mean(neg))


@pytest.mark.parametrize("n", [None, 30], ids=["self", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pos_temperature": 4.0, "weight_grad": True},
        {"grad": "query", "reduction": "none"},
        {"positive": "easy", "margin": 0.9},
        {"eps_mode": "pml", "reduction": "sum"},
        {"normalize": False, "alpha": 4.0, "margin": 1.0, "neg_temperature": 300.0},
    ],
    ids=lambda o: "-".join(o) or "default",
)
def test_ranked_list_of_every_listed_pair_is_the_loss(backend, device, options, n):
    pairs = make_pairs("random", 40, n, 6, 5, torch.float64, seed=3, device=device)
    module = losses.RankedListLoss(**options)
    a1, p, a2, neg = all_pairs(pairs)
    listed = evaluate(module_of(module, pairs, (a1, p, a2, neg)), tensors(pairs))
    listed_stats = module.last_stats
    whole = evaluate(module_of(module, pairs), tensors(pairs))
    contract.assert_close(listed, whole, factor=4096.0)
    for name, value in module.last_stats.items():
        assert float(listed_stats[name]) == pytest.approx(float(value))
    twice = tuple(torch.cat([t, t.flip(0)]) for t in (a1, p, a2, neg))
    contract.assert_close(evaluate(module_of(module, pairs, twice), tensors(pairs)), listed)


@pytest.mark.parametrize("n", [None, 20], ids=["self", "reference"])
def test_ranked_list_of_some_listed_pairs(backend, device, n):
    """Each row's sums over its own listed pairs; triplets list a pair of each kind."""
    pairs = make_pairs("random", 24, n, 6, 4, torch.float64, seed=4, device=device)
    p = problem_of(pairs)
    some = [t for t in brute_force.triplets(p, "all", "all") if sum(t) % 3 == 0][::5]
    indices = tuple(torch.tensor(column, device=device) for column in zip(*some))
    expected = 0.0
    for i in range(24):
        pos = {p.d[i][j] for a, j, _ in some if a == i and p.d[i][j] > 0.8}
        neg = {p.d[i][k] for a, _, k in some if a == i and p.d[i][k] < 1.2}
        weight = {d: np.exp(10 * (1.2 - d)) for d in neg}
        expected += 0.5 * sum(d - 0.8 for d in pos) / max(len(pos), 1)
        expected += 0.5 * sum(w * (1.2 - d) for d, w in weight.items()) / max(sum(weight.values()), 1e-300)
    value = module_of(losses.RankedListLoss(reduction="sum"), pairs, indices)(*tensors(pairs))
    assert float(value) == pytest.approx(expected)
    mean = module_of(losses.RankedListLoss(), pairs, indices)(*tensors(pairs))
    assert float(mean) == pytest.approx(expected / 24)


@pytest.mark.parametrize("options", [{}, {"weight_grad": True}, {"eps_mode": "pml"}, {"positive": "easy"}])
def test_empty_lists(backend, device, options):
    pairs = make_pairs("random", 10, d=4, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    for indices in ((none,) * 3, (none,) * 4):
        for module in (losses.RankedListLoss(**options), losses.TripletMarginLoss()):
            outcome = evaluate(module_of(module, pairs, indices), [pairs.embeddings])
            assert outcome.value.item() == 0
            assert torch.equal(outcome.grads[0], torch.zeros_like(pairs.embeddings))


# Triplet loss.


@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index", "swap", "soft"])
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", ALL_WORDS)
def test_triplet_brute_force_on_the_reference(positive, negative, n, extra):
    """Every pair of words; the reference has them all."""

    with dmlkernels.use_backend("reference"):
        check_triplet("cpu", positive, negative, n, extra)


@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index", "swap", "soft"])
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", KERNEL_WORDS)
def test_triplet_brute_force(kernel, device, positive, negative, n, extra):
    check_triplet(device, positive, negative, n, extra)


@pytest.mark.parametrize("swap", contract.thinned([False, True], True))
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", contract.thinned(KERNEL_WORDS, KERNEL_WORDS[0], KERNEL_WORDS[-1]))
def test_triplet_every_dtype(kernel, device, dtype, positive, negative, n, swap):
    """The sum, since which terms are non-zero is a matter of rounding."""
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=6, device=device)

    def total(x, g=None):
        options = {"positive": positive, "negative": negative, "swap": swap, "reduction": "sum", "margin": 0.5}
        return F.triplet_loss(x, pairs.labels, g, pairs.ref_labels, **options)

    # A sum of 130 terms of size 1.
    assert_matches(total, tensors(pairs), scale=130.0, max_quiet=0.2)


@pytest.mark.heavy
def test_triplet_gradcheck(backend, device):
    pairs = make_pairs("random", 9, d=4, classes=3, dtype=torch.float64, seed=7, device=device)
    leaf = pairs.embeddings.requires_grad_()
    for soft in (False, True):
        assert torch.autograd.gradcheck(lambda x, s=soft: F.triplet_loss(x, pairs.labels, soft=s, margin=1.0), leaf)


@pytest.mark.parametrize("positive, negative", KERNEL_WORDS)
def test_triplet_statistics(backend, device, positive, negative):
    pairs = make_pairs("random", 40, d=6, classes=9, dtype=torch.float64, seed=8, device=device)
    module = losses.TripletMarginLoss(positive=positive, negative=negative, margin=0.2)
    value = module(*pairs[:2])
    p = problem_of(pairs)
    listed = brute_force.triplets(p, positive, negative)
    stats = module.last_stats
    assert int(stats["active_positives"]) == int(stats["active_negatives"]) == len(listed)
    assert float(stats["mean_pos_distance"]) == pytest.approx(np.mean([p.d[a][b] for a, b, _ in listed]))
    assert float(stats["mean_neg_distance"]) == pytest.approx(np.mean([p.d[a][c] for a, _, c in listed]))
    active = sum(p.d[a][b] - p.d[a][c] + 0.2 > 0 for a, b, c in listed)
    assert int(stats["active_triplets"]) == active
    assert float(value) * active == pytest.approx(brute_force.triplet_loss(p, listed, 0.2, reduction="sum"))


@pytest.mark.parametrize("labels", ["one_class", "distinct"])
@pytest.mark.parametrize("reduction", ["nonzero_mean", "mean", "sum"])
@pytest.mark.parametrize("positive, negative", KERNEL_WORDS)
def test_triplet_without_a_triplet(backend, device, labels, reduction, positive, negative):
    pairs = make_pairs("random", 130, d=6, labels=labels, device=device)
    module = losses.TripletMarginLoss(positive=positive, negative=negative, reduction=reduction)
    outcome = evaluate(module_of(module, pairs), [pairs.embeddings])
    assert outcome.value.item() == 0
    assert torch.equal(outcome.grads[0], torch.zeros_like(pairs.embeddings))


@pytest.mark.parametrize("n", [None, 30], ids=["self", "gallery"])
@pytest.mark.parametrize("positive, negative", KERNEL_WORDS)
def test_triplet_non_finite(backend, device, positive, negative, n):
    pairs = make_pairs("random", 130, n, 6, device=device)
    (pairs.embeddings if n is None else pairs.ref_emb)[7, 2] = torch.nan
    options = {"positive": positive, "negative": negative}
    for module in (losses.TripletMarginLoss(**options), losses.RankedListLoss()):
        assert bool(module_of(module, pairs)(*tensors(pairs)).isnan())
    for module in (losses.TripletMarginLoss(**options, check_finite=True), losses.RankedListLoss(check_finite=True)):
        with pytest.raises((ValueError, RuntimeError), match="must be finite"):
            module_of(module, pairs)(*tensors(pairs))


@pytest.mark.heavy
def test_compile_modules(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    for module in (losses.RankedListLoss(), losses.TripletMarginLoss(positive="easy", negative="semihard", swap=True)):
        contract.check_compiled(module_of(module, pairs), [pairs.embeddings])


def test_messages(backend, device):
    x, y = torch.randn(6, 4, device=device), torch.arange(6, device=device) // 2
    op = "triplet_loss: "
    contract.check_messages(
        F.triplet_loss,
        {"embeddings": x, "labels": y},
        [
            ({"positive": "nearest"}, op + "positive must be 'easy' or 'hard' or 'all', got 'nearest'"),
            ({"negative": "easy"}, op + "negative must be 'hard' or 'semihard' or 'all', got 'easy'"),
            ({"reduction": "none"}, op + "reduction must be 'nonzero_mean' or 'mean' or 'sum', got 'none'"),
            ({"margin": float("nan")}, op + "margin must be a finite number, got nan"),
            ({"margin": "1"}, op + "margin must be a finite number, got '1'"),
            ({"labels": y[:5]}, op + "labels must be (M,) with M=6, got (5,)"),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (4,)"),
        ],
    )
    for make, word in (
        (lambda: losses.TripletMarginLoss(positive="x"), "TripletMarginLoss: positive must be"),
        (lambda: losses.TripletMarginLoss(reduction="none"), "TripletMarginLoss: reduction must be"),
        (lambda: losses.RankedListLoss(reduction="median"), "reduction must be 'mean' or 'sum' or 'none'"),
        (lambda: losses.RankedListLoss(grad="both"), "grad must be 'full' or 'query', got 'both'"),
        (lambda: miners.PairMiner(positive="all"), "PairMiner: positive must be 'easy' or 'hard', got 'all'"),
        (lambda: miners.PairMiner(negative="all"), "PairMiner: negative must be 'hard' or 'semihard', got 'all'"),
        (lambda: losses.RankedListLoss()(x, y, (y, y)), "RankedListLoss: indices_tuple must be"),
        (lambda: losses.TripletMarginLoss()(x, y, 5), "TripletMarginLoss: indices_tuple must be"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_settings_are_shown():
    assert "margin=0.3" in repr(losses.RankedListLoss(margin=0.3))
    assert "negative='semihard'" in repr(miners.PairMiner(negative="semihard"))


# PairMiner.


@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index"])
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", KERNEL_WORDS)
def test_pair_miner(backend, device, positive, negative, n, extra):
    pairs = make_pairs("random", 14, n, 5, 3, torch.float64, seed=9, device=device)
    options = {"ignore_index": 1} if extra == "ignore_index" else {}
    ids = ids_of(pairs) if extra == "ids" else {}
    miner = miners.PairMiner(positive, negative, **options)
    mined = miner(*pairs, **ids)
    p = problem_of(pairs, **options, **{k: v.tolist() for k, v in ids.items()})
    assert list(zip(*(t.tolist() for t in mined))) == brute_force.triplets(p, positive, negative)
    assert [t.dtype for t in mined] == [torch.int64] * 3


def test_mined_triplets_are_the_loss(backend, device):
    pairs = make_pairs("random", 140, d=6, dtype=torch.float64, seed=10, device=device)
    mined = miners.PairMiner("easy", "semihard")(*pairs[:2])
    listed = evaluate(module_of(losses.TripletMarginLoss(margin=0.2), pairs, mined), [pairs.embeddings])
    module = losses.TripletMarginLoss(margin=0.2, positive="easy", negative="semihard")
    contract.assert_close(listed, evaluate(module_of(module, pairs), [pairs.embeddings]), factor=4096.0)


def test_miner_drops_non_finite_anchors(backend, device):
    pairs = make_pairs("random", 40, 30, 6, device=device)
    pairs.embeddings[5] = torch.nan
    assert 5 not in miners.PairMiner()(*pairs)[0].tolist()
    with pytest.raises((ValueError, RuntimeError), match="must be finite"):
        miners.PairMiner(check_finite=True)(*pairs)


# pytorch-metric-learning, where it is installed.


@pytest.mark.parametrize("margin, tp, tn, share", [(0.4, 0.0, 10.0, 0.5), (0.2, 3.0, 1.0, 0.3)])
def test_ranked_list_equals_pytorch_metric_learning(backend, device, margin, tp, tn, share):
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    pairs = make_pairs("random", 90, d=8, dtype=torch.float64, seed=11, device=device)
    options = {"pos_temperature": tp, "neg_temperature": tn, "neg_weight": share}
    module = losses.RankedListLoss(margin, eps_mode="pml", weight_grad=True, **options)
    theirs = peer.RankedListLoss(margin=margin, Tn=tn, imbalance=share, Tp=tp)
    a = evaluate(module_of(module, pairs), [pairs.embeddings])
    b = evaluate(lambda x: theirs(x, pairs.labels), [pairs.embeddings])
    contract.assert_close(a, b, factor=4096.0)


@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "swap": True}, {"smooth_loss": True}])
def test_triplet_equals_pytorch_metric_learning(options):

    peer = pytest.importorskip("pytorch_metric_learning.losses")
    pairs = make_pairs("random", 30, d=8, dtype=torch.float64, seed=12)
    ours = {"soft" if k == "smooth_loss" else k: v for k, v in options.items()}
    with dmlkernels.use_backend("reference"):
        a = evaluate(module_of(losses.TripletMarginLoss(**ours), pairs), [pairs.embeddings])
    theirs = peer.TripletMarginLoss(**options)
    b = evaluate(lambda x: theirs(x, pairs.labels), [pairs.embeddings])
    contract.assert_close(a, b, factor=4096.0)
