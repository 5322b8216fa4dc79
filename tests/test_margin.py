"""Margin loss on every backend: the function, the module, β and drawn negatives."""

from __future__ import annotations

import brute_force
import contract
import hinge_oracles
import numpy as np
import pytest
import torch

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._checks import pair_inputs
from dmlkernels.losses._sampled import sampled_distance
from dmlkernels.testing import Pairs, assert_matches, evaluate, make_pairs

BETAS = [1.1, 1.25, 0.9, 1.3, 1.0, 1.2]  # of each class
WORDS = [(positive, count) for positive in ("all", "easy") for count in ("pairs", "triplets")]
EXTRAS = {"plain": {}, "ids": {}, "ignore_index": {"ignore_index": 1}, "raw": {"normalize": False}}


def tensors(pairs: Pairs):
    return [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None]


def problem_of(pairs: Pairs, **more) -> brute_force.Problem:
    return brute_force.Problem(*(None if t is None else t.cpu().numpy() for t in pairs), **more)


def bound_to(pairs: Pairs, **options):
    """The function of the embeddings, and of the gallery if there is one."""
    return lambda x, g=None: F.margin_loss(x, pairs.labels, g, pairs.ref_labels, **options)


def module_of(module, pairs: Pairs, indices=None, **ids):
    return lambda x, g=None: module(x, pairs.labels, indices, g, pairs.ref_labels, **ids)


def ids_of(pairs: Pairs) -> dict:
    some = {"ids": torch.arange(len(pairs.labels), device=pairs.labels.device) // 2}
    if pairs.ref_emb is None:
        return some
    return {**some, "ref_ids": torch.arange(len(pairs.ref_labels), device=pairs.labels.device) // 3}


def small_pairs(n, device, seed=1) -> Pairs:
    """Rows whose distances are near to β, normalised or not; a query has no positives."""
    pairs = make_pairs("random", 14, n, 5, 4, torch.float64, seed=seed, device=device)
    pairs.labels[3] = 5
    for rows in tensors(pairs):
        rows *= 0.4
    return pairs


def check_against_oracle(pairs: Pairs, function, beta, expected, p, per_class) -> None:
    """Value, gradients of the rows, and gradient of β, with 0.7 coming in; the oracle's result is for 1."""
    value, slopes, to_beta, _ = expected
    leaves = [t.detach().clone().requires_grad_() for t in (*tensors(pairs), beta)]
    got = function(*leaves[:-1], beta=leaves[-1])
    assert got.item() == pytest.approx(value, rel=1e-12)
    *grads, grad_beta = torch.autograd.grad(0.7 * got, leaves)
    for grad, wanted in zip(grads, p.scatter(slopes)):
        np.testing.assert_allclose(grad.cpu().numpy(), 0.7 * wanted, rtol=1e-9, atol=1e-12)
    classes = np.zeros(beta.numel())
    for label, slope in zip(p.y, to_beta, strict=True):
        classes[label if per_class else 0] += slope
    np.testing.assert_allclose(grad_beta.flatten().cpu().numpy(), 0.7 * classes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("extra", contract.thinned(EXTRAS, "ignore_index"))
@pytest.mark.parametrize("kind", contract.thinned(["scalar", "one", "per_class"], "per_class"))
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("positive, count", WORDS)
def test_brute_force(backend, device, positive, count, n, kind, extra):
    pairs = small_pairs(n, device)
    ids = ids_of(pairs) if extra == "ids" else {}
    p = problem_of(pairs, **EXTRAS[extra], **{k: v.tolist() for k, v in ids.items()})
    per_class = kind == "per_class"
    beta = torch.tensor(BETAS if per_class else BETAS[:1], dtype=torch.float64, device=device)
    beta = beta[0] if kind == "scalar" else beta
    of_query = [BETAS[label if per_class else 0] for label in p.y]
    words = {"positive": positive, "count": count}
    expected = hinge_oracles.margin(p, of_query, delta=0.3, nu=0.4, per_class=per_class, **words)
    assert min(expected[3]) > 4

    def function(x, g=None, **beta):
        return bound_to(pairs, margin=0.3, nu=0.4, **words, **EXTRAS[extra], **ids, **beta)(x, g)

    check_against_oracle(pairs, function, beta, expected, p, per_class)
    if not per_class:
        number = function(*tensors(pairs), beta=BETAS[0])
        assert float(number) == pytest.approx(expected[0], rel=1e-12)


def uniforms_of(rows: int, draws: int, device) -> torch.Tensor:
    return torch.rand(rows, draws, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(device)


@pytest.mark.parametrize("extra", contract.thinned(EXTRAS, "ignore_index"))
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("draws", contract.thinned([1, 3, 9], 9))
@pytest.mark.parametrize("positive", ["all", "easy"])
def test_drawn_negatives(backend, device, positive, draws, n, extra):
    """One for each positive, as far as there are uniforms; both counts are the same."""
    pairs = small_pairs(n, device, seed=2)
    ids = ids_of(pairs) if extra == "ids" else {}
    p = problem_of(pairs, **EXTRAS[extra], **{k: v.tolist() for k, v in ids.items()})
    uniforms = uniforms_of(14, draws, device)
    drawn = brute_force.distance_weighted(p, uniforms.tolist(), 0.5, 1.4)
    drawn = [
        [k for k in row[: len(hinge_oracles.chosen_positives(p, i, positive))] if k >= 0] for i, row in enumerate(drawn)
    ]
    assert sum(map(len, drawn)) >= (8 if extra == "plain" else 4)
    beta = torch.tensor(BETAS, dtype=torch.float64, device=device)
    of_query = [BETAS[label] for label in p.y]
    expected = hinge_oracles.margin(p, of_query, delta=0.4, nu=0.3, per_class=True, positive=positive, drawn=drawn)
    for count in ("pairs", "triplets"):
        options = {"margin": 0.4, "nu": 0.3, "positive": positive, "count": count, **EXTRAS[extra], **ids}
        options = {**options, "negative": "distance_weighted", "uniforms": uniforms}

        def function(x, g=None, options=options, **beta):
            return bound_to(pairs, **options, **beta)(x, g)

        check_against_oracle(pairs, function, beta, expected, p, True)


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


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", contract.thinned([None, 140], None), ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
def test_every_dtype(kernel, device, dtype, negative, n, positive):
    options = {"beta": 1.2, "margin": 0.3, "positive": positive, "negative": negative}
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=4, avoid=(0.9, 1.5), device=device)
    if negative == "distance_weighted":
        options["uniforms"] = uniforms_of(130, 4, device)
    assert_matches(bound_to(pairs, **options), tensors(pairs), max_quiet=0.3)


@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
@pytest.mark.parametrize("positive", ["all", "easy"])
def test_gradcheck(backend, device, positive, negative):
    """Through the rows and β."""
    pairs = make_pairs("random", 8, 7, 4, 3, torch.float64, seed=5, device=device)
    uniforms = uniforms_of(8, 3, device)
    for beta in (torch.tensor(1.15), torch.tensor([1.1, 1.2, 1.3])):
        leaves = [*tensors(pairs), beta.double().to(device)]
        options = {"positive": positive, "negative": negative, "uniforms": uniforms, "nu": 0.3, "margin": 0.4}

        def function(x, g, beta, options=options):
            return bound_to(pairs, **options, beta=beta)(x, g)

        assert torch.autograd.gradcheck(function, [leaf.requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
@pytest.mark.parametrize("positive, count", WORDS)
def test_no_triplets_cost_nothing(backend, device, positive, count, negative):
    """One class, distinct classes, no rows: 0 without ν·β, and no gradient anywhere."""
    cases = [make_pairs("random", 12, d=6, labels=labels, device=device) for labels in ("one_class", "distinct")]
    cases += [make_pairs("random", m, n, d=6, device=device) for m, n in ((0, None), (0, 5), (5, 0), (1, None))]
    for pairs in cases:
        for beta in (torch.tensor(0.1, device=device), torch.ones(12, device=device)):
            leaf = beta.requires_grad_()
            options = {"positive": positive, "count": count, "negative": negative, "nu": 1.0, "margin": 2.0}
            outcome = evaluate(bound_to(pairs, beta=leaf, **options), tensors(pairs), torch.ones((), device=device))
            assert outcome.value.item() == 0
            assert not any(grad.any() for grad in outcome.grads)


def test_beta_counts_where_no_pair_costs_anything(backend, device):
    """As in pytorch-metric-learning: ν·β is added if there is a triplet; a β for each class has nothing to share."""
    pairs = make_pairs("random", 12, d=6, classes=3, device=device)
    for beta, expected in ((torch.tensor(1.5), 0.75), (torch.full((3,), 1.5), 0.0)):
        value = bound_to(pairs, beta=beta.to(device), nu=0.5, margin=-9.0)(pairs.embeddings)
        assert value.item() == expected


@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
@pytest.mark.parametrize("positive, count", WORDS)
def test_non_finite(backend, device, positive, count, negative):
    pairs = make_pairs("random", 20, 18, 6, 4, device=device)
    options = {"positive": positive, "count": count, "negative": negative}
    for rows in tensors(pairs):
        before = rows[7].clone()
        rows[7, 2] = torch.nan
        assert bool(bound_to(pairs, **options)(*tensors(pairs)).isnan())
        with pytest.raises((ValueError, RuntimeError), match=r"margin_loss: .*must be finite"):
            bound_to(pairs, check_finite=True, **options)(*tensors(pairs))
        label = int((pairs.labels if rows is pairs.embeddings else pairs.ref_labels)[7])
        outcome = evaluate(bound_to(pairs, ignore_index=label, **options), tensors(pairs))
        assert bool(outcome.value.isfinite())
        assert float(outcome.value) > 0
        assert all(bool(grad.isfinite().all()) for grad in outcome.grads)
        rows[7] = before


@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
@pytest.mark.parametrize("positive", ["all", "easy"])
def test_statistics(backend, device, positive, negative):
    pairs = make_pairs("random", 30, d=6, classes=5, dtype=torch.float64, seed=6, device=device)
    generator = torch.Generator(device).manual_seed(3)
    module = losses.MarginLoss(positive=positive, negative=negative, learn_beta=True, generator=generator)
    value = module(*pairs[:2])
    p, drawn, beta = problem_of(pairs), None, float(module.beta)
    if negative == "distance_weighted":
        generator = torch.Generator(device).manual_seed(3)
        draws = 1 if positive == "easy" else 5
        uniforms = torch.rand(30, draws, dtype=torch.float64, device=device, generator=generator)
        drawn = brute_force.distance_weighted(p, uniforms.tolist(), 0.5, 1.4)
    count = "pairs" if positive == "easy" else "triplets"
    expected, _, _, active = hinge_oracles.margin(p, [beta] * 30, positive=positive, count=count, drawn=drawn)
    stats = module.last_stats
    assert float(value) == pytest.approx(expected, rel=1e-6)
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


def test_compile_and_double_backward(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    uniforms = uniforms_of(40, 4, device)
    beta = torch.full((8,), 1.1, device=device)
    for options in ({"beta": beta, "nu": 0.1}, {"positive": "easy", "negative": "distance_weighted"}):
        contract.check_compiled(bound_to(pairs, uniforms=uniforms, **options), [pairs.embeddings])
    contract.check_no_double_backward(bound_to(pairs), pairs.embeddings)


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
