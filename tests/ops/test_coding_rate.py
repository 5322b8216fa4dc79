"""coding_rate: the rates and their gradients, against the formulae and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.coding_rate import RATES, by_formula, match, rate
from support.contract import FLOAT_IDS, FLOATS, assert_close
from support.matrices import relative

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import KINDS, LABEL_KINDS, evaluate, make_pairs

# Rates and gradients against the formulae.


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("scale", ["mcr2", "official_proxy"])
@pytest.mark.parametrize("m, d", [(1, 1), (1, 7), (7, 1), (6, 6), (5, 9), (12, 4), (40, 36), (36, 40)])
def test_total_rate_against_the_formula(backend, device, m, d, scale, normalize):
    x = make_pairs("zero_rows" if m > 3 else "random", m, d=d, dtype=torch.float64, seed=7, device=device).embeddings
    options = {"eps_squared": 0.3, "gain": 1.7, "scale": scale, "normalize": normalize}
    a = 1.7 * (d / m if scale == "mcr2" else m / d) / 0.3
    expected, grad = by_formula(x.cpu().numpy(), a, normalize)
    outcome = evaluate(lambda x: F.coding_rate(x, **options), [x], torch.ones((), device=device))
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12)
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad, rtol=1e-9, atol=1e-11)


# Rates and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("name", ["total", "class", "reduction"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kernel, device, dtype, kind, name):
    match(name, make_pairs(kind, 90, d=24, classes=11, dtype=dtype, seed=9, device=device))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("m, d", [(70, 20), (20, 70)])
@pytest.mark.parametrize("name", RATES)
def test_every_rate(kernel, device, name, m, d, dtype):
    match(name, make_pairs("random", m, d=d, dtype=dtype, seed=10, device=device), max_quiet=0.1)


@pytest.mark.parametrize("name", ["total", "class"])
@pytest.mark.parametrize("labels", LABEL_KINDS)
def test_every_labelling(kernel, device, dtype, labels, name):
    match(name, make_pairs("random", 120, d=16, classes=13, labels=labels, dtype=dtype, seed=11, device=device))


@pytest.mark.parametrize("name", ["total", "class"])
@pytest.mark.parametrize("d", [1, 2, 3, 8, 15, 17, 33, 64, 130, 257, 512, 1024])
def test_widths(kernel, device, d, name):
    match(name, make_pairs("random", 60, d=d, classes=5, seed=12, device=device))


@pytest.mark.parametrize("name", ["total", "class"])
@pytest.mark.parametrize("m", [1, 2, 3, 7, 16, 31, 33, 64, 65, 129, 300])
def test_rows(kernel, device, m, name):
    match(name, make_pairs("random", m, d=32, classes=max(1, m // 9), seed=13, device=device))


# Ill-conditioned rates. The condition number is that of I + a ZᵀZ; the promise of a float32 gradient is 2e-7 times it.


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("m, d", [(16, 64), (64, 16), (200, 48)])
@pytest.mark.parametrize("name", ["unit", "raw", "class"])
def test_ill_conditioned_rates(kernel, device, name, m, d, condition):
    x = make_pairs("random", m, d=d, seed=16, device=device).embeddings
    y = torch.arange(m, device=device) % 4
    z = x if name == "raw" else torch.nn.functional.normalize(x, dim=1)
    parts = [z] if name != "class" else [z[y == c] for c in range(4)]
    spread = max(float(torch.linalg.matrix_norm(p.double(), 2)) ** 2 * d / len(p) for p in parts)
    eps_squared = spread / (condition - 1)

    def function(x):
        if name == "class":
            return F.class_coding_rate(x, y, eps_squared=eps_squared)
        return F.coding_rate(x, eps_squared=eps_squared, normalize=name == "unit")

    outcome = evaluate(function, [x], torch.ones((), device=device))
    with dmlkernels.use_backend("reference"):
        truth = evaluate(function, [x.double()], torch.ones((), device=device))
    assert relative(outcome.grads[0], truth.grads[0]) <= 2e-7 * condition
    assert relative(outcome.value, truth.value) <= 1e-6


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
def test_near_collapse(kernel, device, gap):
    """Rows that nearly coincide: what is left of the gradient is what the normalisation leaves of a radial one."""
    generator = torch.Generator().manual_seed(17)
    x = torch.ones(40, 16) + gap * torch.randn(40, 16, generator=generator)
    pairs = make_pairs("random", 40, d=16, device=device)._replace(embeddings=x.to(device))
    for name in ("total", "class"):
        match(name, pairs)


# Gradients by differences.


@pytest.mark.heavy
@pytest.mark.parametrize("m, d", [(6, 4), (4, 6), (5, 1)])
@pytest.mark.parametrize("name", RATES)
def test_gradcheck(backend, device, name, m, d):
    pairs = make_pairs("random", m, d=d, classes=2, dtype=torch.float64, seed=18, device=device)
    assert torch.autograd.gradcheck(rate(name, pairs.labels), [pairs.embeddings.requires_grad_()])


# Properties.


def test_known_values(backend, device):
    """Orthonormal rows: R = n/2 log(1 + D/(n ε²)); one class each: ½ log(1 + D/ε²) in the mean."""
    z, one = torch.eye(8, dtype=torch.float64, device=device), torch.zeros(8, dtype=torch.int64, device=device)
    each = torch.arange(8, device=device)
    assert float(F.coding_rate(z)) == pytest.approx(4 * np.log(1 + 2))
    assert float(F.coding_rate(z[:2])) == pytest.approx(np.log(1 + 8))
    assert float(F.coding_rate(z[:2], scale="official_proxy")) == pytest.approx(np.log(1.5))
    assert float(F.class_coding_rate(z, one)) == pytest.approx(4 * np.log(1 + 2))
    assert float(F.class_coding_rate(z, each)) == pytest.approx(0.5 * np.log(1 + 16))
    assert float(F.coding_rate_reduction(z, one)) == pytest.approx(0, abs=1e-12)
    assert float(F.coding_rate_reduction(z, each)) == pytest.approx(4 * np.log(3) - 0.5 * np.log(17))
    assert float(F.anti_collapse_loss(z)) == -float(F.coding_rate(z))
    assert float(F.anti_collapse_loss(z, form="exp_neg_rate", rate_weight=0.5)) == pytest.approx(3**-2)


@pytest.mark.parametrize("m, d", [(20, 50), (50, 20)])
def test_both_gram_matrices_give_the_rate(backend, device, m, d):
    """Appending features of zeros with a scale that undoes their count turns the factored side around."""
    x = make_pairs("random", m, d=d, dtype=torch.float64, seed=19, device=device).embeddings
    other = torch.cat([x, x.new_zeros(m, 40)], 1)
    torch.testing.assert_close(F.coding_rate(other, eps_squared=0.5 * (d + 40) / d), F.coding_rate(x))


def test_gain_divides_eps_squared(backend, device):
    x = make_pairs("random", 30, d=9, dtype=torch.float64, seed=20, device=device).embeddings
    torch.testing.assert_close(F.coding_rate(x, gain=4.0), F.coding_rate(x, eps_squared=0.125))
    official = F.coding_rate(x, scale="official_proxy", gain=2.0)
    torch.testing.assert_close(official, F.coding_rate(x, gain=2.0 * (30 / 9) ** 2))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["total", "class", "reduction"])
def test_row_order_does_not_matter(backend, device, name):
    pairs = make_pairs("random", 130, d=12, classes=9, dtype=torch.float64, seed=21, device=device)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1)).to(device)
    seed = torch.ones((), dtype=torch.float64, device=device)
    a = evaluate(rate(name, pairs.labels), [pairs.embeddings], seed)
    b = evaluate(rate(name, pairs.labels[order]), [pairs.embeddings[order]], seed)
    a.grads = [a.grads[0][order]]
    assert_close(b, a)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["total", "class"])
def test_scale_of_the_rows_does_not_matter(backend, device, name, scale):
    pairs = make_pairs("random", 40, d=6, seed=23, dtype=torch.float64, device=device)
    a = evaluate(rate(name, pairs.labels), [pairs.embeddings])
    b = evaluate(rate(name, pairs.labels), [pairs.embeddings * scale])
    b.grads = [b.grads[0] * scale]
    assert_close(b, a)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("name", ["total", "class", "reduction"])
@pytest.mark.parametrize("m, d", [(1, 8), (12, 8), (100, 8), (12, 200)])
def test_exact_collapse_has_no_gradient(backend, device, name, m, d, dtype):
    """∂R/∂Z is radial there, so that nothing is left after the normalisation but rounding."""
    row = torch.randn(1, d, dtype=dtype, generator=torch.Generator().manual_seed(24)).to(device)
    y = torch.arange(m, device=device) % 3
    grad = evaluate(rate(name, y), [row.expand(m, d)], torch.ones((), dtype=dtype, device=device)).grads[0]
    raw = {"total": "raw", "class": "class_raw", "reduction": "raw"}[name]
    unit = torch.nn.functional.normalize(row, dim=1).expand(m, d)
    before = evaluate(rate(raw, y), [unit], torch.ones((), dtype=dtype, device=device)).grads[0]
    allowed = 64 * torch.finfo(dtype).eps * (1 + float(torch.linalg.vector_norm(before)) * d**0.5)
    assert float(torch.linalg.vector_norm(grad)) <= allowed / float(torch.linalg.vector_norm(row))


def test_duplicates_count(backend, device):
    """Two copies of every row: a halves and ZᵀZ doubles, so that the rate stays and each copy has half the gradient."""
    pairs = make_pairs("random", 30, d=8, classes=5, dtype=torch.float64, seed=25, device=device)
    twice = torch.cat([pairs.embeddings, pairs.embeddings])
    seed = torch.ones((), dtype=torch.float64, device=device)
    for name in ("total", "class"):
        one = evaluate(rate(name, pairs.labels), [pairs.embeddings], seed)
        two = evaluate(rate(name, pairs.labels.repeat(2)), [twice], seed)
        two.grads = [two.grads[0][:30] + two.grads[0][30:]]
        assert_close(two, one)
