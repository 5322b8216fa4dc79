"""Contrastive loss on every backend: the function, the module and its lists."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import brute_force, contract, hinge_oracles
from support.pairs import all_pairs, ids_of, module_of, problem_of, tensors

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import Pairs, assert_matches, evaluate, make_pairs, noise_like

REDUCTIONS = ("nonzero_mean", "mean", "sum", "none")
MARGINS = {"euclidean": {"pos_margin": 0.6, "neg_margin": 1.3}, "cosine": {"pos_margin": 0.8, "neg_margin": 0.1}}
# The distances of unit rows at which the hinges of MARGINS begin.
BEGIN = {"euclidean": (0.6, 1.3), "cosine": (0.4**0.5, 1.8**0.5)}
EXTRAS = {
    "plain": {},
    "easy": {"positive": "easy"},
    "ids": {},
    "ignore_index": {"ignore_index": 1},
    "raw": {"normalize": False},
    "easy_ignore": {"positive": "easy", "ignore_index": 1},
}


def bound_to(pairs: Pairs, **options):
    """The function of the embeddings, and of the gallery if there is one."""
    return lambda x, g=None: F.contrastive_loss(x, pairs.labels, g, pairs.ref_labels, **options)


@pytest.mark.parametrize("extra", contract.thinned(EXTRAS, "easy", "easy_ignore"))
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("metric", MARGINS)
def test_brute_force(backend, device, metric, n, extra):
    pairs = make_pairs("random", 14, n, 5, 4, torch.float64, seed=1, device=device)
    pairs.labels[3] = 9  # a query without positives
    ids = ids_of(pairs) if extra == "ids" else {}
    options = {"metric": metric, **MARGINS[metric], **EXTRAS[extra]}
    excluded = {k: EXTRAS[extra][k] for k in ("ignore_index", "normalize") if k in EXTRAS[extra]}
    p = problem_of(pairs, **excluded, **{k: v.tolist() for k, v in ids.items()})
    words = {k: v for k, v in options.items() if k not in excluded}
    for reduction in REDUCTIONS:
        incoming = noise_like(pairs.embeddings[:, 0] if reduction == "none" else torch.zeros(()), 3).to(
            pairs.embeddings
        )
        expected, slopes = hinge_oracles.contrastive(p, incoming.tolist(), reduction=reduction, **words)
        assert len(slopes) > 20
        function = bound_to(pairs, reduction=reduction, **options, **ids)
        outcome = evaluate(function, tensors(pairs), incoming)
        assert outcome.value.tolist() == pytest.approx(expected, rel=1e-12)
        for got, wanted in zip(outcome.grads, hinge_oracles.scatter(p, slopes, metric)):
            np.testing.assert_allclose(got.cpu().numpy(), wanted, rtol=1e-9, atol=1e-12)
    module = losses.ContrastiveLoss(reduction=reduction, **options)
    contract.assert_identical(evaluate(module_of(module, pairs, **ids), tensors(pairs), incoming), outcome)


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", contract.thinned([None, 140], None), ids=["self", "reference"])
@pytest.mark.parametrize("metric", MARGINS)
def test_every_dtype(kernel, device, dtype, metric, n, positive):
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=2, avoid=BEGIN[metric], device=device)
    for reduction in ("none", "nonzero_mean"):
        function = bound_to(pairs, metric=metric, positive=positive, reduction=reduction, **MARGINS[metric])
        # A query's sum has about a hundred terms of size 1.
        assert_matches(function, tensors(pairs), scale=100.0 if reduction == "none" else 1.0, max_quiet=0.2)


@pytest.mark.heavy
@pytest.mark.large
@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("metric", MARGINS)
def test_gradcheck(backend, device, metric, positive):
    pairs = make_pairs("random", 7, 6, 4, 3, torch.float64, seed=3, device=device)
    leaves = [t.requires_grad_() for t in tensors(pairs)]
    assert torch.autograd.gradcheck(bound_to(pairs, metric=metric, positive=positive, **MARGINS[metric]), leaves)


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_side_that_exists_is_kept(backend, device, reduction, positive):
    """One class has no negatives, and distinct classes have no positives; neither makes the other side 0."""
    for labels, side in (("one_class", "pos"), ("distinct", "neg")):
        pairs = make_pairs("random", 12, d=6, labels=labels, dtype=torch.float64, device=device)
        options = {"pos_margin": 0.1, "neg_margin": 1.5, "positive": positive, "reduction": reduction}
        value = bound_to(pairs, **options)(pairs.embeddings)
        incoming = torch.ones_like(value)
        expected, _ = hinge_oracles.contrastive(problem_of(pairs), incoming.tolist(), **options)
        assert value.tolist() == pytest.approx(expected)
        assert float(value.sum()) > 0
        without = bound_to(pairs, **{**options, f"{side}_margin": 9.0 if side == "pos" else -9.0})
        outcome = evaluate(without, [pairs.embeddings])
        assert not outcome.value.any()
        assert not outcome.grads[0].any()


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (1, None)])
def test_no_pairs(backend, device, m, n, positive):
    pairs = make_pairs("random", m, n, d=4, device=device)
    for metric in MARGINS:
        for reduction in REDUCTIONS:
            outcome = evaluate(bound_to(pairs, metric=metric, positive=positive, reduction=reduction), tensors(pairs))
            assert outcome.value.shape == ((m,) if reduction == "none" else ())
            assert not outcome.value.any()
            assert not any(grad.any() for grad in outcome.grads)


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("metric", MARGINS)
def test_non_finite(backend, device, metric, positive):
    """A query makes its own loss NaN, a gallery row every query's; a row that is ignored makes none."""
    pairs = make_pairs("random", 20, 18, 6, 4, device=device)
    options = {"metric": metric, "positive": positive}
    clean = bound_to(pairs, reduction="none", **options)(*tensors(pairs))
    pairs.embeddings[7, 2] = torch.inf
    rows = bound_to(pairs, reduction="none", **options)(*tensors(pairs))
    others = torch.arange(20, device=device) != 7
    assert torch.equal(rows[others], clean[others])
    assert bool(rows[7].isnan())
    for reduction in REDUCTIONS[:3]:
        assert bool(bound_to(pairs, reduction=reduction, **options)(*tensors(pairs)).isnan())
    with pytest.raises((ValueError, RuntimeError), match=r"contrastive_loss: .*must be finite"):
        bound_to(pairs, check_finite=True, **options)(*tensors(pairs))
    label = int(pairs.labels[7])
    outcome = evaluate(bound_to(pairs, ignore_index=label, **options), tensors(pairs))
    assert bool(outcome.value.isfinite())
    assert all(bool(grad.isfinite().all()) for grad in outcome.grads)
    pairs.ref_emb[4, 1] = torch.nan
    assert bool(bound_to(pairs, reduction="none", **options)(*tensors(pairs)).isnan().all())


def test_defaults(backend, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    spelled = {"pos_margin": 0.0, "neg_margin": 1.0, "metric": "euclidean", "reduction": "nonzero_mean"}
    expected = F.contrastive_loss(*pairs[:2], positive="all", normalize=True, **spelled)
    assert torch.equal(F.contrastive_loss(*pairs[:2]), expected)
    assert torch.equal(losses.ContrastiveLoss()(*pairs[:2]), expected)
    assert torch.equal(losses.ContrastiveLoss(0, 1)(*pairs[:2]), expected)


@pytest.mark.parametrize("metric", MARGINS)
def test_statistics(backend, device, metric):
    pairs = make_pairs("random", 30, d=6, classes=5, dtype=torch.float64, seed=4, device=device)
    module = losses.ContrastiveLoss(metric=metric, **MARGINS[metric])
    module(pairs.embeddings.requires_grad_(), pairs.labels)
    pairs.embeddings.requires_grad_(False)
    p = problem_of(pairs)
    _, slopes = hinge_oracles.contrastive(p, 1.0, metric=metric, reduction="sum", **MARGINS[metric])
    values = {
        pair: p.d[pair[0]][pair[1]] if metric == "euclidean" else hinge_oracles.similarity(p, *pair) for pair in slopes
    }
    name = "distance" if metric == "euclidean" else "similarity"
    stats = module.last_stats
    assert not any(v.requires_grad or v.shape for v in stats.values())
    for side, same in (("pos", True), ("neg", False)):
        members = [v for (i, j), v in values.items() if (p.y[i] == p.h[j]) == same]
        assert int(stats[f"active_{side}itives" if same else "active_negatives"]) == len(members)
        assert float(stats[f"mean_{side}_{name}"]) == pytest.approx(np.mean(members))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", [None, 15], ids=["self", "reference"])
@pytest.mark.parametrize("metric", MARGINS)
def test_every_listed_pair_is_the_loss(device, backend, metric, n, positive, reduction):
    pairs = make_pairs("random", 20, n, 6, 5, torch.float64, seed=5, device=device)
    for normalize in (True, False):
        options = {"positive": positive, "reduction": reduction, "normalize": normalize}
        module = losses.ContrastiveLoss(metric=metric, **MARGINS[metric], **options)
        listed = evaluate(module_of(module, pairs, all_pairs(pairs)), tensors(pairs))
        stats = module.last_stats
        contract.assert_close(listed, evaluate(module_of(module, pairs), tensors(pairs)), factor=4096.0)
        for name, value in module.last_stats.items():
            assert float(stats[name]) == pytest.approx(float(value))


def test_listed_triplets_count_as_often_as_they_are_listed():
    pairs = make_pairs("random", 12, d=5, classes=3, dtype=torch.float64, seed=6)
    p = problem_of(pairs)
    some = brute_force.triplets(p, "all", "all")[::7]
    indices = tuple(torch.tensor(column) for column in zip(*some))
    pos = [max(p.d[a][b] - 0.6, 0) for a, b, _ in some]
    neg = [max(1.3 - p.d[a][c], 0) for a, _, c in some]
    assert len(set(pos)) < len(pos)
    for reduction, size in (("sum", lambda t: 1), ("mean", len), ("nonzero_mean", np.count_nonzero)):
        module = losses.ContrastiveLoss(reduction=reduction, **MARGINS["euclidean"])
        assert float(module(*pairs[:2], indices)) == pytest.approx(sum(pos) / size(pos) + sum(neg) / size(neg))
    none = torch.empty(0, dtype=torch.int64)
    for indices in ((none,) * 3, (none,) * 4):
        outcome = evaluate(module_of(losses.ContrastiveLoss(), pairs, indices), [pairs.embeddings])
        assert outcome.value.item() == 0
        assert not outcome.grads[0].any()


@pytest.mark.parametrize(
    "loss",
    [losses.ContrastiveLoss, losses.MarginLoss, losses.TripletMarginLoss],
    ids=["contrastive", "margin", "triplet"],
)
@pytest.mark.parametrize("row", [0, 5, 9], ids=["anchor", "positive", "negative"])
def test_listed_non_finite(loss, row):
    """A NaN at either end of a listed pair reaches the loss, past the choice of the nearest positive too."""
    pairs = make_pairs("random", 12, d=5, classes=3)
    a, p, n = torch.tensor([0, 0, 1]), torch.tensor([4, 5, 6]), torch.tensor([8, 9, 10])
    pairs.embeddings[row, 1] = torch.nan
    for options in ({}, {"positive": "easy"}):
        assert bool(loss(**options)(*pairs[:2], (a, p, n)).isnan())
        assert bool(loss(**options)(*pairs[:2], (a[1:], p[1:], a[1:], n[1:])).isnan())
        with pytest.raises(ValueError, match="embeddings and ref_emb must be finite"):
            loss(check_finite=True, **options)(*pairs[:2], (a, p, n))


@pytest.mark.large
def test_compile_and_double_backward(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    for options in ({}, {"metric": "cosine", "positive": "easy", "reduction": "none", **MARGINS["cosine"]}):
        contract.check_compiled(module_of(losses.ContrastiveLoss(**options), pairs), [pairs.embeddings])
    contract.check_no_double_backward(bound_to(pairs), pairs.embeddings)


def test_messages(backend, device):
    x, y = torch.randn(6, 4, device=device), torch.arange(6, device=device) // 2
    op = "contrastive_loss: "
    contract.check_messages(
        F.contrastive_loss,
        {"embeddings": x, "labels": y},
        [
            ({"metric": "dot"}, op + "metric must be 'euclidean' or 'cosine', got 'dot'"),
            ({"positive": "hard"}, op + "positive must be 'all' or 'easy', got 'hard'"),
            (
                {"reduction": "median"},
                op + "reduction must be 'nonzero_mean' or 'mean' or 'sum' or 'none', got 'median'",
            ),
            ({"pos_margin": float("nan")}, op + "pos_margin must be a finite number, got nan"),
            ({"neg_margin": "1"}, op + "neg_margin must be a finite number, got '1'"),
            ({"labels": y[:5]}, op + "labels must be (M,) with M=6, got (5,)"),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (4,)"),
        ],
    )
    with pytest.raises(ValueError, match="ContrastiveLoss: metric must be 'euclidean' or 'cosine', got 'dot'"):
        losses.ContrastiveLoss(metric="dot")
    with pytest.raises(ValueError, match="ContrastiveLoss: indices_tuple must be"):
        losses.ContrastiveLoss()(x, y, (y, y))
    assert "neg_margin=0.5" in repr(losses.ContrastiveLoss(neg_margin=0.5))


@pytest.mark.parametrize("distance", [5e-20, 1e-19, 1e-30])
def test_a_distance_whose_square_is_no_normal_number(backend, device, distance):
    """The pair pulls as any other, or as one that coincides: not without bound."""
    x = torch.tensor([[0.0], [distance]], device=device, requires_grad=True)
    F.contrastive_loss(x, torch.arange(2, device=device), normalize=False).backward()
    assert bool((x.grad.abs() <= 1 + 1e-5).all())
