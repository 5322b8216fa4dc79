"""Margin loss as a module on every backend: its lists, its β, what it draws, its statistics and messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import brute_force, contract, hinge_oracles
from support.margin import bound_to, uniforms_of
from support.pairs import module_of, problem_of, tensors

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._checks import pair_inputs
from dmlkernels.losses._pairs import sampled_distance
from dmlkernels.testing import evaluate, make_pairs


def test_generator(backend, device):
    """The same seed draws the same, and is what those uniforms give; S is the largest number of positives."""
    pairs = make_pairs("random", 30, d=6, classes=5, dtype=torch.float64, seed=3, labels="ragged", device=device)
    loss = {positive: bound_to(pairs, negative="distance_weighted", positive=positive) for positive in ("all", "easy")}
    largest = int(torch.bincount(pairs.labels).max()) - 1
    for positive, draws in (("all", largest), ("easy", 1)):

        def seeded(seed, positive=positive):
            generator = torch.Generator(device).manual_seed(seed)
            options = {"negative": "distance_weighted", "positive": positive, "generator": generator}
            module = losses.MarginLoss(**options)
            return module(*pairs[:2])

        generator = torch.Generator(device).manual_seed(1)
        uniforms = torch.rand(30, draws, dtype=torch.float64, device=device, generator=generator)
        given = bound_to(pairs, negative="distance_weighted", positive=positive, uniforms=uniforms)
        assert torch.equal(seeded(1), seeded(1))
        assert torch.equal(seeded(1), given(pairs.embeddings))
        assert not torch.equal(seeded(1), seeded(2))
        assert bool(loss[positive](pairs.embeddings).isfinite())


def test_beta_counts_where_no_pair_costs_anything(backend, device):
    """As in pytorch-metric-learning: ν·β is added if there is a triplet; a β for each class has nothing to share."""
    pairs = make_pairs("random", 12, d=6, classes=3, device=device)
    for beta, expected in ((torch.tensor(1.5), 0.75), (torch.full((3,), 1.5), 0.0)):
        value = bound_to(pairs, beta=beta.to(device), nu=0.5, margin=-9.0)(pairs.embeddings)
        assert value.item() == expected


@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
@pytest.mark.parametrize("positive", ["all", "easy"])
def test_statistics(backend, device, positive, negative):
    pairs = make_pairs("random", 30, d=6, classes=5, dtype=torch.float64, seed=6, device=device)
    generator = torch.Generator(device).manual_seed(3)
    module = losses.MarginLoss(positive=positive, negative=negative, learn_beta=True, generator=generator)
    value = module(*pairs[:2])
    p, drawn, beta = problem_of(pairs), None, module.beta.item()
    if negative == "distance_weighted":
        generator = torch.Generator(device).manual_seed(3)
        draws = 1 if positive == "easy" else 5
        uniforms = torch.rand(30, draws, dtype=torch.float64, device=device, generator=generator)
        drawn = brute_force.distance_weighted(p, uniforms.tolist(), 0.5, 1.4)
    count = "pairs" if positive == "easy" else "triplets"
    expected, _, _, active = hinge_oracles.margin(p, [beta] * 30, positive=positive, count=count, drawn=drawn)
    stats = module.last_stats
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert not any(v.requires_grad or v.shape for v in stats.values())
    assert [int(stats["active_positives"]), int(stats["active_negatives"])] == active
    near = [p.d[i][j] for i in range(30) for j in hinge_oracles.chosen_positives(p, i, positive)]
    far = [p.d[i][j] for i in range(30) for j in (p.negatives(i) if drawn is None else drawn[i])]
    assert float(stats["mean_pos_distance"]) == pytest.approx(np.mean([d for d in near if d > beta - 0.2]))
    assert float(stats["mean_neg_distance"]) == pytest.approx(np.mean([d for d in far if d < beta + 0.2]))
    assert float(stats["mean_beta"]) == beta


@pytest.mark.parametrize("count", ["pairs", "triplets"])
@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", [None, 15], ids=["self", "reference"])
def test_every_listed_pair_is_the_loss(backend, device, n, positive, count):
    pairs = make_pairs("random", 20, n, 6, 5, torch.float64, seed=7, device=device)
    p, rows = problem_of(pairs), range(20)
    listed = [[(i, j) for i in rows for j in p.positives(i)], [(i, j) for i in rows for j in p.negatives(i)]]
    indices = tuple(torch.tensor(column, device=device) for side in listed for column in zip(*side))
    for classes in (None, 5):
        module = losses.MarginLoss(nu=0.3, learn_beta=True, num_classes=classes, positive=positive, count=count).to(
            device, torch.float64
        )
        outcomes, of_beta = [], []
        for lists in (indices, None):
            outcomes.append(evaluate(module_of(module, pairs, lists), tensors(pairs)))
            of_beta.append(torch.autograd.grad(module_of(module, pairs, lists)(*tensors(pairs)), module.beta)[0])
        contract.assert_close(*outcomes, factor=4096.0)
        torch.testing.assert_close(*of_beta)


def test_listed_triplets():
    """Every triplet counts ("triplets"), or every pair of theirs once ("pairs"); nothing is drawn."""
    pairs = make_pairs("random", 12, d=5, classes=3, dtype=torch.float64, seed=8)
    p = problem_of(pairs)
    some = brute_force.triplets(p, "all", "all")[::3]
    indices = tuple(torch.tensor(column) for column in zip(*some))
    for count, drop in (("triplets", list), ("pairs", set)):
        pos = [p.d[a][b] - 1.0 for a, b in drop((a, b) for a, b, _ in some)]
        neg = [1.4 - p.d[a][c] for a, c in drop((a, c) for a, _, c in some)]
        costs = [c for c in pos + neg if c > 0]
        for negative in ("all", "distance_weighted"):
            module = losses.MarginLoss(count=count, negative=negative)
            assert float(module(*pairs[:2], indices)) == pytest.approx(sum(costs) / len(costs))
    none = torch.empty(0, dtype=torch.int64)
    for indices in ((none,) * 3, (none,) * 4):
        outcome = evaluate(module_of(losses.MarginLoss(), pairs, indices), [pairs.embeddings])
        assert outcome.value.item() == 0
        assert not outcome.grads[0].any()


def test_defaults(backend, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    spelled = F.margin_loss(*pairs[:2], beta=1.2, margin=0.2, nu=0.0, positive="all", negative="all", count="triplets")
    assert torch.equal(F.margin_loss(*pairs[:2]), spelled)
    assert torch.equal(losses.MarginLoss()(*pairs[:2]), spelled)
    assert torch.equal(losses.MarginLoss(nu=3.0)(*pairs[:2]), spelled)
    easy = F.margin_loss(*pairs[:2], positive="easy", count="pairs")
    assert torch.equal(losses.MarginLoss(positive="easy")(*pairs[:2]), easy)
    drawn = {"negative": "distance_weighted", "uniforms": uniforms_of(40, 8, device)}
    spelled = F.margin_loss(*pairs[:2], cutoff=0.5, nonzero_loss_cutoff=1.4, **drawn)
    assert torch.equal(F.margin_loss(*pairs[:2], **drawn), spelled)
    assert not torch.equal(F.margin_loss(*pairs[:2], **drawn, nonzero_loss_cutoff=1.1), spelled)


def test_learned_beta_moves(backend, device):
    pairs = make_pairs("random", 40, d=6, classes=4, device=device)
    module = losses.MarginLoss(learn_beta=True, num_classes=4, beta=1.0).to(device)
    module(*pairs[:2]).backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module.beta.shape == (4,)
    assert bool((module.beta != 1).all())
    assert list(losses.MarginLoss(learn_beta=True).state_dict()) == ["beta"]
    assert not list(losses.MarginLoss().parameters())


@pytest.mark.large
def test_compile_and_double_backward(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    uniforms = uniforms_of(40, 4, device)
    beta = torch.full((8,), 1.1, device=device)
    for options in ({"beta": beta, "nu": 0.1}, {"positive": "easy", "negative": "distance_weighted"}):
        contract.check_compiled(bound_to(pairs, uniforms=uniforms, **options), [pairs.embeddings])
    contract.check_no_double_backward(bound_to(pairs), pairs.embeddings)


@pytest.mark.parametrize("positive", ["all", "easy"])
def test_second_derivatives_of_drawn_distances(positive):
    """The reference has them, at coincident rows too: of the gradient's square, beside differences of the gradient."""
    pairs = make_pairs("random", 12, d=5, classes=4, dtype=torch.float64)
    uniforms = uniforms_of(12, 2, "cpu")
    loss = bound_to(pairs, negative="distance_weighted", positive=positive, uniforms=uniforms)

    def gradient(x, create_graph=False):
        (grad,) = torch.autograd.grad(loss(x), x, create_graph=create_graph)
        return grad

    with dmlkernels.use_backend("reference"):
        x = pairs.embeddings.detach().requires_grad_()
        (second,) = torch.autograd.grad(gradient(x, True).square().sum(), x)
        step = 1e-6 * make_pairs("random", 12, d=5, dtype=torch.float64, seed=9).embeddings
        ahead, behind = (gradient((x + sign * step).detach().requires_grad_()) for sign in (1, -1))
        change = (ahead.square().sum() - behind.square().sum()) / 2
        torch.testing.assert_close((second * step).sum(), change, rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.func.grad(loss)(pairs.embeddings), gradient(x), rtol=1e-12, atol=0)

        f = torch.eye(3, dtype=torch.float64)[[0, 0, 1]].requires_grad_()
        inputs = pair_inputs("margin_loss", f, torch.arange(3))
        first = sampled_distance(inputs, torch.tensor([[1], [2], [0]])).sum()
        (grad,) = torch.autograd.grad(first, f, create_graph=True)
        assert bool(torch.autograd.grad(grad.square().sum(), f)[0].isfinite().all())


def test_drawn_distances_keep_nothing_of_their_width():
    """The largest tensor kept for the backward is (M, S), not (M, S, D)."""
    pairs = make_pairs("random", 256, d=64, classes=2)
    inputs = pair_inputs("margin_loss", pairs.embeddings.requires_grad_(), pairs.labels)
    index = torch.randint(0, 256, (256, 127))
    sizes = []

    def keep(kept):
        sizes.append(kept.untyped_storage().nbytes())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        distances = sampled_distance(inputs, index)
    assert distances.requires_grad
    assert max(sizes) == index.untyped_storage().nbytes()


def test_messages(backend, device):
    x, y = torch.randn(6, 4, device=device), torch.arange(6, device=device) // 2
    op, uniforms = "margin_loss: ", torch.full((6, 2), 0.5, device=device)
    contract.check_messages(
        F.margin_loss,
        {"embeddings": x, "labels": y, "beta": torch.ones(3, device=device)},
        [
            ({"positive": "hard"}, op + "positive must be 'all' or 'easy', got 'hard'"),
            ({"negative": "hard"}, op + "negative must be 'all' or 'distance_weighted', got 'hard'"),
            ({"count": "rows"}, op + "count must be 'pairs' or 'triplets', got 'rows'"),
            ({"margin": float("inf")}, op + "margin must be a finite number, got inf"),
            ({"nu": None}, op + "nu must be a finite number, got None"),
            ({"beta": "1"}, op + "beta must be a finite number, got '1'"),
            ({"beta": x}, op + "beta must be a number, or of shape () or (C,), got (6, 4)"),
            ({"beta": y}, op + "beta must be float64, float32, bfloat16 or float16, got torch.int64"),
            ({"beta": torch.ones(2, device=device)}, op + "labels must be in [0, C) with C=2, got 2"),
            (
                {"negative": "distance_weighted", "uniforms": uniforms[:5]},
                op + "uniforms must be (M, S) with M=6, got (5, 2)",
            ),
            ({"labels": y[:5]}, op + "labels must be (M,) with M=6, got (5,)"),
        ],
    )
    ignored = torch.where(y == 2, -1, y)
    assert bool(F.margin_loss(x, ignored, beta=torch.ones(2, device=device), ignore_index=-1).isfinite())
    for make, word in (
        (lambda: losses.MarginLoss(positive="x"), "MarginLoss: positive must be"),
        (lambda: losses.MarginLoss(beta=torch.ones(3)), "MarginLoss: beta must be a finite number"),
        (lambda: losses.MarginLoss(num_classes=0), "MarginLoss: num_classes must be at least 1, got 0"),
        (lambda: losses.MarginLoss(num_classes=2.0), "MarginLoss: num_classes must be an int or None, got 2.0"),
        (lambda: losses.MarginLoss()(x, y, (y, y)), "MarginLoss: indices_tuple must be"),
    ):
        with pytest.raises(ValueError, match=word):
            make()
    assert "learn_beta=True" in repr(losses.MarginLoss(learn_beta=True))
