"""Margin loss on every backend: values and gradients of rows and β, with all negatives and with drawn ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import brute_force, contract, hinge_oracles
from support.margin import bound_to, uniforms_of
from support.pairs import ids_of, problem_of, tensors

from dmlkernels.testing import Pairs, assert_matches, evaluate, make_pairs

BETAS = [1.1, 1.25, 0.9, 1.3, 1.0, 1.2]  # of each class
WORDS = [(positive, count) for positive in ("all", "easy") for count in ("pairs", "triplets")]
EXTRAS = {"plain": {}, "ids": {}, "ignore_index": {"ignore_index": 1}, "raw": {"normalize": False}}


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


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("n", contract.thinned([None, 140], None), ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "distance_weighted"])
def test_every_dtype(kernel, device, dtype, negative, n, positive):
    options = {"beta": 1.2, "margin": 0.3, "positive": positive, "negative": negative}
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=4, avoid=(0.9, 1.5), device=device)
    if negative == "distance_weighted":
        options["uniforms"] = uniforms_of(130, 4, device)
    assert_matches(bound_to(pairs, **options), tensors(pairs), max_quiet=0.3)


@pytest.mark.heavy
@pytest.mark.large
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
    for beta in (torch.tensor(torch.nan), torch.tensor([1.2, torch.nan, 1.2, 1.2])):
        assert bool(bound_to(pairs, beta=beta.to(device), **options)(*tensors(pairs)).isnan())
