"""cholesky and coding_rate: log-determinants, the rates, and the losses made of them."""

from __future__ import annotations

import warnings

import contract
import numpy as np
import pytest
import torch
from contract import VIEWS, assert_close, assert_identical, strided

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.losses import anti_collapse
from dmlkernels.testing import INTEGER_DTYPES, KINDS, LABEL_KINDS, assert_matches, evaluate, make_labels, make_pairs

FLOATS = [torch.float64, torch.float32]
FLOAT_IDS = ["float64", "float32"]
SMALL = 32  # largest matrix of which the CPU factors several at a time
SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 64, 65]

RATES = {
    "total": lambda x, y: F.coding_rate(x),
    "gain": lambda x, y: F.coding_rate(x, gain=3.0, eps_squared=0.2),
    "official": lambda x, y: F.coding_rate(x, scale="official_proxy", gain=2.0),
    "raw": lambda x, y: F.coding_rate(x, eps_squared=2.0, normalize=False),
    "class": lambda x, y: F.class_coding_rate(x, y),
    "class_raw": lambda x, y: F.class_coding_rate(x, y, eps_squared=2.0, normalize=False),
    "reduction": lambda x, y: F.coding_rate_reduction(x, y, gain=1.5),
    "exponential": lambda x, y: F.anti_collapse_loss(x, form="exp_neg_rate", rate_weight=0.02),
}
RAW = ("raw", "class_raw")


def rate(name, labels):
    return lambda x: RATES[name](x, labels)


def definite(batch, n, dtype=torch.float64, condition=None, seed=0, device="cpu"):
    """(batch, n, n) symmetric positive definite; with a condition number, its eigenvalues are spaced evenly in log."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(batch, n, n, dtype=torch.float64, generator=generator)
    if condition is None:
        a = basis @ basis.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)
    else:
        q = torch.linalg.qr(basis)[0]
        eigenvalues = torch.logspace(0, -np.log10(condition), n, dtype=torch.float64)
        a = q * eigenvalues @ q.mT
    return ((a + a.mT) / 2).to(dtype).to(device)


def matrices(function, a, weights=None):
    """`evaluate` of a function of one (B, n, n) tensor."""
    return evaluate(function, [a], weights)


def relative(got, truth):
    return float(torch.linalg.vector_norm(got.double() - truth.double()) / torch.linalg.vector_norm(truth.double()))


# The log-determinant.


@pytest.mark.parametrize("batch", [1, 3, 37])
@pytest.mark.parametrize("n", SIZES)
def test_logdet_against_numpy(backend, device, n, batch):
    a = definite(batch, n, seed=1, device=device)
    incoming = torch.linspace(-1, 2, batch, dtype=torch.float64, device=device)
    outcome = matrices(F.cholesky_logdet, a, incoming)
    sign, expected = np.linalg.slogdet(a.cpu().numpy())
    assert (sign == 1).all()
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12, atol=1e-12)
    grad = incoming.cpu().numpy()[:, None, None] * np.linalg.inv(a.cpu().numpy())
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n", [1, 3, 16, 32, 33, 70])
def test_logdet_of_every_dtype(kernel, device, dtype, n):
    """Half matrices are judged as rounded: the factor and the gradient are float32's."""
    a = definite(5, n, dtype, seed=2, device=device)
    outcome = matrices(F.cholesky_logdet, a)
    assert outcome.value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert outcome.grads[0].dtype == dtype
    with dmlkernels.use_backend("reference"):
        truth = matrices(F.cholesky_logdet, a.double(), torch.randn(5, generator=torch.Generator().manual_seed(2)))
    eps = torch.finfo(outcome.value.dtype).eps
    cond = float(torch.linalg.cond(a.double()).max())
    torch.testing.assert_close(outcome.value.double(), truth.value, rtol=4 * eps, atol=n * cond * eps)
    allowed = 2 * cond * eps + torch.finfo(dtype).eps
    assert relative(outcome.grads[0], truth.grads[0]) <= allowed


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n", [96, 128, 129, 144, 145, 208, 209])
def test_logdet_around_the_limits_of_shared_memory(kernel, device, n, dtype):
    a = definite(2, n, dtype, seed=2, device=device)
    a[1, n // 2, n // 2] = -1
    outcome = matrices(lambda a: F.cholesky_logdet(a, check=False)[:1], a, torch.ones(1))
    expected, inverse = torch.linalg.slogdet(a[0].double())[1], torch.linalg.inv(a[0].double())
    eps, cond = torch.finfo(dtype).eps, float(torch.linalg.cond(a[0].double()))
    assert abs(float(outcome.value[0]) - float(expected)) <= n * cond * eps
    assert relative(outcome.grads[0][0], inverse) <= 2 * cond * eps
    assert F.cholesky_logdet(a, check=False).isnan().tolist() == [False, True]
    with pytest.raises(RuntimeError, match=r"A\[1\]"):
        F.cholesky_logdet(a)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("n", [2, 8, 31, 48, 100])
def test_logdet_of_ill_conditioned_matrices(kernel, device, n, condition):
    a = definite(4, n, torch.float32, condition, seed=3, device=device)
    outcome = matrices(F.cholesky_logdet, a)
    with dmlkernels.use_backend("reference"):
        truth = matrices(F.cholesky_logdet, a.double(), torch.randn(4, generator=torch.Generator().manual_seed(2)))
    assert relative(outcome.grads[0], truth.grads[0]) <= 2e-7 * condition
    assert relative(outcome.value, truth.value) <= 1e-6 + 1e-8 * condition


@pytest.mark.parametrize("n", [3, 7, 34])
def test_logdet_gradcheck(backend, device, n):
    b = torch.randn(2, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(device)
    eye = torch.eye(n, dtype=torch.float64, device=device)
    function = lambda b: F.cholesky_logdet(b @ b.mT + eye)  # noqa: E731
    assert torch.autograd.gradcheck(function, [b.requires_grad_()], fast_mode=n > 10)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n", [4, 20, 50])
def test_only_the_lower_triangle_is_read(backend, device, n, dtype):
    a = definite(3, n, dtype, seed=5, device=device)
    upper = torch.ones(n, n, dtype=torch.bool, device=device).triu(1)
    dirty = a.masked_fill(upper, torch.nan)
    clean, other = matrices(F.cholesky_logdet, a), matrices(F.cholesky_logdet, dirty)
    assert_identical(other, clean)
    torch.testing.assert_close(clean.grads[0], clean.grads[0].mT)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("bad", ["negative", "zero", "indefinite", "nan", "minus_inf"])
@pytest.mark.parametrize("n", [4, 20, 50])
def test_not_positive_definite(backend, device, n, bad, dtype):
    a = definite(19, n, dtype, seed=6, device=device)
    broken = a.clone()
    for matrix in (5, 18):
        if bad == "indefinite":
            broken[matrix, -1, -1] = 1e-3
            broken[matrix, -1, 0] = 3.0
        else:
            broken[matrix, 2, 2] = {"negative": -1.0, "zero": 0.0, "nan": torch.nan, "minus_inf": -torch.inf}[bad]
    with pytest.raises(RuntimeError, match=r"cholesky_logdet: A must be positive definite \(check=True\), got A\[5\]"):
        F.cholesky_logdet(broken)
    outcome = matrices(lambda a: F.cholesky_logdet(a, check=False), broken)
    whole = matrices(F.cholesky_logdet, a)
    lost = torch.zeros(19, dtype=torch.bool, device=device).index_fill(0, torch.tensor([5, 18], device=device), True)
    assert torch.equal(outcome.value.isnan(), lost)
    assert bool(outcome.grads[0][lost].isnan().any(2).any(1).all())
    assert torch.equal(outcome.value[~lost], whole.value[~lost])
    assert torch.equal(outcome.grads[0][~lost], whole.grads[0][~lost])


def test_failing_matrix_has_its_index_in_the_flattened_batch(backend, device):
    a = definite(6, 3, device=device).reshape(2, 3, 3, 3).clone()
    a[1, 1, 0, 0] = -1
    with pytest.raises(RuntimeError, match=r"A\[4\]"):
        F.cholesky_logdet(a)
    assert F.cholesky_logdet(a, check=False).isnan().tolist() == [[False] * 3, [False, True, False]]


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 4, 4), (3, 0, 2, 2), (4, 4), (2, 3, 4, 4), (0, 40, 40)])
def test_logdet_shapes(backend, device, shape):
    a = torch.eye(shape[-1], dtype=torch.float64, device=device).expand(shape) * 2
    outcome = matrices(F.cholesky_logdet, a)
    expected = torch.full(shape[:-2], shape[-1] * np.log(2.0), dtype=torch.float64, device=device)
    torch.testing.assert_close(outcome.value, expected)
    assert outcome.grads[0].shape == shape


# Rates and gradients against the formulae.


def unit_rows(x, normalize):
    norm = np.sqrt((x * x).sum(1, keepdims=True))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0) if normalize else x


def by_formula(x, a, normalize):
    """½ logdet(I + a Z Zᵀ) and its gradient in x, from the eigenvalues and an explicit inverse."""
    z = unit_rows(x, normalize)
    primal = np.eye(len(z)) + a * z @ z.T
    grad = a * np.linalg.inv(primal) @ z
    if normalize:
        norm = np.sqrt((x * x).sum(1, keepdims=True))
        grad = np.divide(grad - (grad * z).sum(1, keepdims=True) * z, norm, out=np.zeros_like(x), where=norm > 0)
    return 0.5 * np.log(np.linalg.eigvalsh(primal)).sum(), grad


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


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", LABEL_KINDS)
@pytest.mark.parametrize("m, d", [(30, 4), (30, 11), (90, 8)])
def test_class_rate_against_the_formula(backend, device, m, d, labels, normalize):
    pairs = make_pairs("random", m, d=d, classes=7, labels=labels, dtype=torch.float64, seed=8, device=device)
    x, y = pairs.embeddings.cpu().numpy(), pairs.labels.cpu().numpy()
    expected, grad = 0.0, np.zeros_like(x)
    for label in np.unique(y):
        own = y == label
        part, part_grad = by_formula(x[own], d / (own.sum() * 0.4), normalize)
        expected += own.sum() / m * part
        grad[own] = own.sum() / m * part_grad
    outcome = evaluate(
        lambda x: F.class_coding_rate(x, pairs.labels, eps_squared=0.4, normalize=normalize),
        [pairs.embeddings],
        torch.ones((), device=device),
    )
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12)
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad, rtol=1e-9, atol=1e-11)


# Rates and gradients of the kernels against the float64 reference.


def match(name, pairs, **rule):
    rule = {"normalize": name not in RAW, "max_quiet": 1.0, **rule}
    return assert_matches(rate(name, pairs.labels), [pairs.embeddings], **rule)


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


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [5, 40])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 15, 16, 17, SMALL, SMALL + 1, 60])
def test_class_sizes(kernel, device, size, d, dtype):
    """Classes of one size, the last one smaller; above the limit of the small kernel they are factored one by one."""
    pairs = make_pairs("random", 7 * size - size // 2, d=d, dtype=dtype, seed=14, device=device)
    match("class", pairs._replace(labels=torch.arange(len(pairs.labels), device=device) // size))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_ragged_classes(kernel, device, dtype):
    """Sizes 1 to 40, large and small ones together in one batch, in random order."""
    labels = torch.cat([torch.full((n,), n) for n in (1, 40, 3, 2, 33, 32, 7, 1, 16, 5, 31)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pairs = make_pairs("random", len(labels), d=12, dtype=dtype, seed=15, device=device)
    match("class", pairs._replace(labels=labels[order].to(device)))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("sizes", [(15, 16, 17, 18), (131, 2, 150), (140, 33, 5), (260, 1)], ids=str)
@pytest.mark.parametrize("d", [20, 140])
def test_large_classes(kernel, device, sizes, d, dtype):
    """Above 16 rows a class is a CUDA block's; a side above 128 is in global memory; rows may outnumber features."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pairs = make_pairs("random", len(labels), d=d, dtype=dtype, seed=15, device=device)
    match("class", pairs._replace(labels=labels[order].to(device)))


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


@pytest.mark.parametrize("name", ["total", "class", "reduction"])
def test_row_order_does_not_matter(backend, device, name):
    pairs = make_pairs("random", 130, d=12, classes=9, dtype=torch.float64, seed=21, device=device)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1)).to(device)
    seed = torch.ones((), dtype=torch.float64, device=device)
    a = evaluate(rate(name, pairs.labels), [pairs.embeddings], seed)
    b = evaluate(rate(name, pairs.labels[order]), [pairs.embeddings[order]], seed)
    a.grads = [a.grads[0][order]]
    assert_close(b, a)


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_labels_are_names(backend, device, label_dtype):
    """Any integers, with gaps: classes without rows contribute nothing."""
    y = make_labels("shuffled", 50, 2 if label_dtype == torch.bool else 7, generator=torch.Generator().manual_seed(22))
    x = make_pairs("random", 50, d=9, dtype=torch.float64, device=device).embeddings
    spread = y if label_dtype == torch.bool else y * 11 - (30 if label_dtype.is_signed else 0)
    got = F.class_coding_rate(x, spread.to(label_dtype).to(device))
    torch.testing.assert_close(got, F.class_coding_rate(x, y.to(device)))


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


# Edges, strides, dtypes.


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (4, 0)])
@pytest.mark.parametrize("name", ["total", "class", "reduction", "official"])
def test_nothing_to_code(backend, device, name, shape):
    y = torch.zeros(shape[0], dtype=torch.int64, device=device)
    outcome = evaluate(rate(name, y), [torch.zeros(shape, device=device)])
    assert float(outcome.value) == 0
    assert outcome.grads[0].shape == shape


@pytest.mark.parametrize("name", ["total", "class"])
def test_zero_rows(backend, device, name):
    """They take part in n and in nothing else, and get no gradient."""
    pairs = make_pairs("zero_rows", 40, d=8, seed=26, device=device)
    outcome = evaluate(rate(name, pairs.labels), [pairs.embeddings])
    zero = (pairs.embeddings == 0).all(1)
    assert bool(zero.any())
    assert torch.equal(outcome.grads[0][zero], torch.zeros_like(outcome.grads[0][zero]))
    assert bool((outcome.grads[0][~zero] != 0).any(1).all())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["total", "class"])
def test_strided_inputs(kernel, device, dtype, view, name):
    pairs = make_pairs("random", 70, d=9, dtype=dtype, seed=27, device=device)
    through = lambda x: RATES[name](VIEWS[view](x), strided(pairs.labels))  # noqa: E731
    assert_identical(evaluate(through, [pairs.embeddings]), evaluate(rate(name, pairs.labels), [pairs.embeddings]))


@pytest.mark.parametrize("n", [5, 40])
def test_strided_matrices(backend, device, n):
    a = definite(6, n, seed=28, device=device)
    whole = matrices(F.cholesky_logdet, a)
    views = {
        "columns": lambda a: torch.cat([a, torch.full_like(a, torch.nan)], 2)[:, :, :n],
        "rows": lambda a: torch.cat([torch.full_like(a, torch.nan), a], 1)[:, n:],
        "batch_last": lambda a: a.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    }
    for view in views.values():
        assert_identical(matrices(lambda a, view=view: F.cholesky_logdet(view(a)), a), whole)
    seed = torch.ones((), dtype=torch.float64, device=device)
    assert_identical(
        matrices(F.cholesky_logdet, a, seed.expand(6)), matrices(F.cholesky_logdet, a, seed.expand(6).contiguous())
    )


def test_result_dtype(backend, device, dtype):
    pairs = make_pairs("random", 20, d=6, dtype=dtype, device=device)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in RATES:
        assert rate(name, pairs.labels)(pairs.embeddings).dtype == expected
        with torch.autocast(device, dtype=torch.bfloat16):
            torch.testing.assert_close(
                rate(name, pairs.labels)(pairs.embeddings), rate(name, pairs.labels)(pairs.embeddings.clone())
            )


@pytest.mark.large
def test_small_incoming_gradients_of_half_inputs(backend, device):
    """What a GradScaler is for: the gradient of the rate is float32 until it has been scaled."""
    pairs = make_pairs("random", 4000, d=8, dtype=torch.float16, device=device)
    scaled = evaluate(rate("total", None), [pairs.embeddings], torch.tensor(2.0**14, device=device)).grads[0]
    true = evaluate(rate("total", None), [pairs.embeddings.float()], torch.tensor(2.0**14, device=device)).grads[0]
    assert relative(scaled, true) < 1e-3


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["total", "class"])
@pytest.mark.parametrize("m, d", [(50, 6), (6, 50)])
def test_non_finite_rows(backend, device, name, bad, normalize, m, d):
    pairs = make_pairs("random", m, d=d, device=device)
    pairs.embeddings[m - 1, 2] = bad
    name = name if normalize else {"total": "raw", "class": "class_raw"}[name]
    assert bool(rate(name, pairs.labels)(pairs.embeddings).isnan())


@pytest.mark.parametrize("name", ["total", "class"])
def test_overflowing_norms(backend, device, name):
    """Finite numbers whose squares are not: the row would count as zero."""
    pairs = make_pairs("random", 30, d=6, device=device)
    pairs.embeddings[3] = 1e30
    assert bool(rate(name, pairs.labels)(pairs.embeddings).isnan())
    assert bool(rate(name, pairs.labels)(pairs.embeddings.double()).isfinite())


def test_inputs_are_left_alone(backend, device):
    pairs = make_pairs("random", 60, d=6, device=device)
    x, y, a = pairs.embeddings.clone(), pairs.labels.clone(), definite(3, 40, device=device)
    kept = a.clone()
    for name in RATES:
        evaluate(rate(name, pairs.labels), [pairs.embeddings])
    F.cholesky_logdet(a)
    assert torch.equal(pairs.embeddings, x)
    assert torch.equal(pairs.labels, y)
    assert torch.equal(a, kept)


def test_no_gradient_is_formed_unless_needed(kernel, device):
    pairs = make_pairs("random", 20, d=6, device=device)
    fwd = kernel.operators.coding_rate_fwd
    for labels in (None, pairs.labels):
        needed, not_needed = (fwd(pairs.embeddings, labels, 0.5, 1.0, "mcr2", True, "ieee", n) for n in (True, False))
        assert torch.equal(needed[0], not_needed[0])
        assert (needed[1].shape, not_needed[1].shape) == ((20, 6), (0, 6))
    x = pairs.embeddings.requires_grad_()
    with torch.no_grad():
        assert not F.coding_rate(x).requires_grad
    with pytest.raises(RuntimeError, match="kept nothing to differentiate by"):
        fwd(x, None, 0.5, 1.0, "mcr2", True, "ieee", False)[0].backward()
    assert kernel.operators.cholesky_fwd(definite(2, 5), True, False)[1].shape == (0, 5, 5)


# opcheck, torch.compile, vmap, double backward, determinism.


@pytest.mark.parametrize("view", ["plain", "transposed"])
@pytest.mark.parametrize("labelled", [False, True], ids=["total", "class"])
@pytest.mark.parametrize("m, d", [(9, 4), (4, 9)])
def test_opcheck(kernel, device, m, d, labelled, view):
    pairs = make_pairs("random", m, d=d, classes=3, device=device)
    x = pairs.embeddings if view == "plain" else VIEWS[view](pairs.embeddings)
    options = (strided(pairs.labels) if labelled else None, 0.5, 1.0, "mcr2", True, "ieee", True)
    value, grad = kernel.operators.coding_rate_fwd(x, *options)
    contract.check_operator(kernel.operators.coding_rate_bwd, (torch.ones_like(value), grad))
    contract.check_operator(kernel.operators.coding_rate_fwd, (x.requires_grad_(), *options))


@pytest.mark.parametrize("n", [5, 40])
def test_opcheck_cholesky(kernel, device, n):
    a = definite(3, n, torch.float32, device=device)
    value, inverse = kernel.operators.cholesky_fwd(a, True, True)
    contract.check_operator(kernel.operators.cholesky_bwd, (torch.ones_like(value), inverse))
    contract.check_operator(kernel.operators.cholesky_fwd, (a.mT.requires_grad_(), False, True))


@pytest.mark.parametrize("name", ["total", "class", "reduction", "exponential"])
def test_compile(kernel, device, name):
    pairs = make_pairs("random", 40, d=6, device=device)
    contract.check_compiled(rate(name, pairs.labels), [pairs.embeddings])


def test_compile_with_inductor(kernel, device):
    pairs = make_pairs("random", 40, d=6, dtype=torch.bfloat16, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.coding_rate_reduction, fullgraph=True)
    torch.testing.assert_close(compiled(*pairs[:2]), F.coding_rate_reduction(*pairs[:2]))


def test_compile_cholesky(kernel, device):
    torch.compiler.reset()
    compiled = torch.compile(F.cholesky_logdet, fullgraph=True, backend="aot_eager")
    for a in (definite(3, 6, device=device), definite(5, 40, device=device)):
        assert_identical(matrices(compiled, a), matrices(F.cholesky_logdet, a))


def test_compile_takes_other_sizes(kernel, device):
    torch.compiler.reset()
    compiled = torch.compile(F.coding_rate_reduction, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (130, 20, 257):
        pairs = make_pairs("random", m, d=6, device=device)
        torch.testing.assert_close(compiled(*pairs[:2]), F.coding_rate_reduction(*pairs[:2]))


@pytest.mark.parametrize("shared_labels", [True, False])
def test_vmap(kernel, device, shared_labels):
    problems = [make_pairs("random", 30, d=5, classes=3, seed=s, device=device) for s in range(3)]
    x = torch.stack([p.embeddings for p in problems], 1)
    y = problems[0].labels if shared_labels else torch.stack([p.labels for p in problems])
    got = torch.vmap(F.class_coding_rate, in_dims=(1, None if shared_labels else 0))(x, y)
    for b, p in enumerate(problems):
        assert torch.equal(got[b], F.class_coding_rate(p.embeddings, problems[0].labels if shared_labels else p.labels))


def test_vmap_cholesky(kernel, device):
    a = definite(12, 6, device=device).reshape(3, 4, 6, 6)
    assert torch.equal(torch.vmap(F.cholesky_logdet)(a), F.cholesky_logdet(a))


def test_double_backward(kernel, device):
    x = make_pairs("random", 20, d=5, device=device).embeddings
    contract.check_no_double_backward(F.coding_rate, x)
    contract.check_no_double_backward(F.cholesky_logdet, definite(3, 5, device=device))


def test_double_backward_of_the_reference():
    x = make_pairs("random", 6, d=4, dtype=torch.float64).embeddings.requires_grad_()
    with dmlkernels.use_backend("reference"):
        assert torch.autograd.gradgradcheck(F.coding_rate, [x])


@pytest.mark.parametrize("m, d", [(300, 17), (40, 90)])
def test_deterministic(kernel, device, m, d):
    pairs = make_pairs("random", m, d=d, classes=40, device=device)
    contract.check_deterministic(rate("class", pairs.labels), [pairs.embeddings])


def test_deterministic_cholesky(kernel, device):
    contract.check_deterministic(F.cholesky_logdet, [definite(70, SMALL, torch.float32, device=device)])


def test_large_matrices_twice(kernel, device):
    """LAPACK's and the BLAS's roundings may follow the number of threads, but not the call."""
    a = definite(7, 60, torch.float32, device=device)
    assert_identical(matrices(F.cholesky_logdet, a), matrices(F.cholesky_logdet, a))
    for m, d in ((300, 200), (300, 17), (40, 90)):
        x = make_pairs("random", m, d=d, device=device).embeddings
        assert_identical(evaluate(F.coding_rate, [x]), evaluate(F.coding_rate, [x]))


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    x = make_pairs("random", 30, d=6, device=device).embeddings
    leaf = x.clone().requires_grad_()
    value = F.coding_rate(leaf)
    with dmlkernels.use_backend("reference"):
        value.backward()
    assert torch.equal(leaf.grad, evaluate(F.coding_rate, [x], torch.ones((), device=device)).grads[0])


# Messages.

POSITIVE_NUMBERS = (0, -1.0, float("nan"), float("inf"), True, "1")


def test_messages(backend, device):
    x, y = torch.randn(12, 4, device=device), torch.arange(12, device=device) % 3
    op = "coding_rate: "
    contract.check_messages(
        F.coding_rate,
        {"z": x},
        [
            ({"z": [[1.0]]}, op + "z must be a (M, D) tensor, got list"),
            ({"z": x[0]}, op + "z must be (M, D), got (4,)"),
            ({"z": x.long()}, op + "z must be float64, float32, bfloat16 or float16, got torch.int64"),
            ({"scale": "mine"}, op + "scale must be 'mcr2' or 'official_proxy', got 'mine'"),
            *(({"gain": v}, op + f"gain must be a positive number, got {v!r}") for v in POSITIVE_NUMBERS),
            *(({"eps_squared": v}, op + f"eps_squared must be a positive number, got {v!r}") for v in POSITIVE_NUMBERS),
        ],
    )
    for function in (F.class_coding_rate, F.coding_rate_reduction):
        op = f"{function.__name__}: "
        contract.check_messages(
            function,
            {"z": x, "labels": y},
            [
                ({"z": x[None]}, op + "z must be (M, D), got (1, 12, 4)"),
                ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
                ({"labels": y[:, None]}, op + "labels must be (M,) with M=12, got (12, 1)"),
                ({"labels": [0] * 12}, op + "labels must be a (M,) integer tensor, got list"),
                (
                    {"labels": y.float()},
                    op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
                ),
                ({"eps_squared": 0.0}, op + "eps_squared must be a positive number, got 0.0"),
            ],
        )
    op = "anti_collapse_loss: "
    contract.check_messages(
        F.anti_collapse_loss,
        {"z": x},
        [
            ({"z": x[0]}, op + "z must be (M, D), got (4,)"),
            ({"form": "rate"}, op + "form must be 'neg_rate' or 'exp_neg_rate', got 'rate'"),
            ({"rate_weight": -2.0}, op + "rate_weight must be a positive number, got -2.0"),
        ],
    )
    op = "cholesky_logdet: "
    contract.check_messages(
        F.cholesky_logdet,
        {"A": torch.eye(3, device=device)},
        [
            ({"A": [[1.0]]}, op + "A must be a (..., n, n) tensor, got list"),
            ({"A": x}, op + "A must be (..., n, n), got (12, 4)"),
            ({"A": x[0]}, op + "A must be (..., n, n), got (4,)"),
            ({"A": torch.eye(3).long()}, op + "A must be float64, float32, bfloat16 or float16, got torch.int64"),
        ],
    )


def test_direct_calls_are_checked(kernel, device):
    pairs = make_pairs("random", 12, d=4, classes=3, device=device)
    x, y, ops = pairs.embeddings, pairs.labels, kernel.operators
    names = [a.name for a in ops.coding_rate_fwd.default._schema.arguments]
    good = dict(zip(names, (x, y, 0.5, 1.0, "mcr2", True, "ieee", True), strict=True))
    bad = {
        "vector": {"z": x[0]},
        "integers": {"z": x.long()},
        "short labels": {"labels": y[:11]},
        "int32 labels": {"labels": y.int()},
        "column labels": {"labels": y[:, None]},
        "unknown scale": {"scale": "mine"},
        "no distortion": {"eps_squared": 0.0},
        "negative gain": {"gain": -1.0},
    }
    contract.check_rejects(ops.coding_rate_fwd, good, bad)
    value, grad = ops.coding_rate_fwd(*good.values())
    bad = {
        "vector": {"grad_rate": value[None]},
        "another dtype": {"grad_rate": value.double()},
        "rows of another rank": {"rate_grad": grad[0]},
    }
    contract.check_rejects(ops.coding_rate_bwd, {"grad_rate": value, "rate_grad": grad}, bad)
    a = definite(3, 4, torch.float32, device=device)
    bad = {"one matrix": {"A": a[0]}, "rectangle": {"A": a[:, :2]}, "half": {"A": a.half()}, "long": {"A": a.long()}}
    contract.check_rejects(ops.cholesky_fwd, {"A": a, "check": True, "need_inverse": True}, bad)
    logdet, inverse = ops.cholesky_fwd(a, True, True)
    bad = {
        "short grad": {"grad_logdet": logdet[:2]},
        "grad of another dtype": {"grad_logdet": logdet.double()},
        "no inverse": {"inverse": inverse[:0]},
        "one inverse": {"inverse": inverse[0]},
        "rectangle": {"inverse": inverse[:, :2]},
    }
    contract.check_rejects(ops.cholesky_bwd, {"grad_logdet": logdet, "inverse": inverse}, bad)


# The exponential form's trap.


@pytest.fixture
def untold(monkeypatch):
    monkeypatch.setattr(anti_collapse, "_underflow_was_told", False)


@pytest.mark.large
def test_underflow_is_told_once(backend, device, untold):
    """R = 110 for 90 random rows of width 512, and e^-110 is 0 in float32; in float64 it is not."""
    x = make_pairs("random", 90, d=512, device=device).embeddings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.anti_collapse_loss(x)
        F.anti_collapse_loss(x.double(), form="exp_neg_rate")
        F.anti_collapse_loss(x, form="exp_neg_rate", rate_weight=0.1)
        F.anti_collapse_loss(x, form="exp_neg_rate", scale="official_proxy")
    with pytest.warns(UserWarning, match=r"rate of these \(90, 512\) rows .* 11\d"):
        assert float(F.anti_collapse_loss(x, form="exp_neg_rate")) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        F.anti_collapse_loss(x, form="exp_neg_rate")


def test_published_setting(backend, device):
    """45 proxies of width 512 with the authors' scale: R = 3.6."""
    x = make_pairs("random", 45, d=512, device=device).embeddings
    assert float(F.coding_rate(x, scale="official_proxy")) == pytest.approx(3.6, abs=0.1)


# MCR2Loss and AntiCollapseLoss.


def test_mcr2_loss(backend, device):
    pairs = make_pairs("random", 60, d=16, classes=6, seed=29, device=device)
    loss = losses.MCR2Loss(gain=1.5, rate_weight=0.7, eps_squared=0.3)

    def spelled(x):
        r = F.coding_rate(x, gain=1.5, eps_squared=0.3)
        return F.class_coding_rate(x, pairs.labels, eps_squared=0.3) - 0.7 * r

    own = evaluate(lambda x: loss(x, pairs.labels), [pairs.embeddings])
    assert_identical(own, evaluate(spelled, [pairs.embeddings]))
    default = losses.MCR2Loss()(*pairs[:2])
    torch.testing.assert_close(default, -F.coding_rate_reduction(*pairs[:2]))
    loss(pairs.embeddings.requires_grad_(), pairs.labels)
    assert set(loss.last_stats) == {"rate", "class_rate"}
    assert not any(v.requires_grad or v.ndim for v in loss.last_stats.values())
    with pytest.raises(ValueError, match="MCR2Loss: ref_emb must be None, since this loss is not one of pairs"):
        loss(*pairs[:2], ref_emb=pairs.embeddings)
    with pytest.raises(ValueError, match="MCR2Loss: rate_weight must be a positive number"):
        losses.MCR2Loss(rate_weight=0)


ANTI_COLLAPSE = [
    {},
    {"weight": 0.3, "base_weight": 0.5, "gain": 2.0},
    {"form": "exp_neg_rate", "rate_weight": 0.1, "eps_squared": 0.7},
    {"scale": "official_proxy", "form": "exp_neg_rate"},
    {"normalize": False, "eps_squared": 3.0},
]


@pytest.mark.parametrize("options", ANTI_COLLAPSE, ids=lambda o: "-".join(o) or "default")
@pytest.mark.parametrize("on", ["features", "batch_proxies", "all_proxies"])
@pytest.mark.parametrize("classes", [5, 40], ids=["few_classes", "many_classes"])
def test_anti_collapse_loss_is_the_sum(backend, device, on, options, classes):
    """Of 12 classes with proxies, or of 50 of which most are not in the batch."""
    pairs = make_pairs("random", 30, d=16, classes=classes, dtype=torch.float64, seed=30, device=device)
    base = losses.ProxyAnchorLoss(classes + 7, 16).double().to(device)
    loss = losses.AntiCollapseLoss(base, on, **options)
    term = {k: v for k, v in options.items() if k not in ("weight", "base_weight")}
    weight = options.get("weight", 1.0 if options.get("form") == "exp_neg_rate" else 1e-3)

    def through_module(module, x, p):
        return torch.func.functional_call(module, {"base_loss.proxies": p}, (x, pairs.labels))

    def spelled(x, p):
        chosen = {"features": x, "all_proxies": p, "batch_proxies": p[pairs.labels.unique()]}[on]
        value = F.proxy_anchor_loss(x, pairs.labels, p)
        return options.get("base_weight", 1.0) * value + weight * F.anti_collapse_loss(chosen, **term)

    tensors = [pairs.embeddings, base.proxies.detach()]
    assert_close(evaluate(lambda x, p: through_module(loss, x, p), tensors), evaluate(spelled, tensors), factor=4096)
    value = loss(*pairs[:2])
    expected = {"features": pairs.embeddings, "all_proxies": base.proxies}
    expected["batch_proxies"] = base.proxies[pairs.labels.unique()]
    rate_options = {k: v for k, v in term.items() if k not in ("form", "rate_weight")}
    stats = loss.last_stats
    assert set(stats) == {"pos_term", "neg_term", "base_loss", "rate"}
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    torch.testing.assert_close(stats["rate"], F.coding_rate(expected[on], **rate_options).detach())
    torch.testing.assert_close(stats["base_loss"], F.proxy_anchor_loss(*pairs[:2], base.proxies).detach())
    assert value.requires_grad
    assert loss.proxies is base.proxies


def test_anti_collapse_defaults(backend, device):
    pairs = make_pairs("random", 30, d=16, device=device)
    assert losses.AntiCollapseLoss(losses.ProxyAnchorLoss(9, 16)).on == "batch_proxies"
    around_pairs = losses.AntiCollapseLoss(losses.RankedListLoss())
    assert around_pairs.on == "features"
    value = around_pairs(*pairs[:2])
    assert {"active_positives", "rate", "base_loss"} <= set(around_pairs.last_stats)
    torch.testing.assert_close(value, F.ranked_list_loss(*pairs[:2]) - 1e-3 * F.coding_rate(pairs.embeddings))
    ids = torch.arange(30, device=device) // 2
    expected = F.ranked_list_loss(*pairs[:2], ids=ids) - 1e-3 * F.coding_rate(pairs.embeddings)
    torch.testing.assert_close(around_pairs(*pairs[:2], ids=ids), expected)
    other = losses.AntiCollapseLoss(torch.nn.CrossEntropyLoss())
    torch.testing.assert_close(
        other(pairs.embeddings, pairs.labels),
        torch.nn.functional.cross_entropy(pairs.embeddings, pairs.labels) - 1e-3 * F.coding_rate(pairs.embeddings),
    )


@pytest.mark.large
def test_anti_collapse_prevents_collapse(backend, device):
    """Gradient descent on −R alone spreads a nearly collapsed batch."""
    generator = torch.Generator().manual_seed(31)
    x = (torch.ones(24, 8) + 0.05 * torch.randn(24, 8, generator=generator)).to(device).requires_grad_()
    before = float(F.coding_rate(x.detach()))
    for _ in range(60):
        (grad,) = torch.autograd.grad(F.anti_collapse_loss(x), x)
        x = (x - 0.5 * grad).detach().requires_grad_()
    assert float(F.coding_rate(x.detach())) > before + 0.5


def test_anti_collapse_compiles(kernel, device):
    """Batch proxies keep their shapes, whatever the labels."""
    base = losses.ProxyAnchorLoss(12, 16).to(device)
    loss = losses.AntiCollapseLoss(base)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda x, y: loss(x, y), fullgraph=True, backend=counter)
    x = make_pairs("random", 30, d=16, device=device).embeddings
    for classes in (3, 9, 12):
        y = torch.arange(30, device=device) % classes
        torch.testing.assert_close(compiled(x, y), loss(x, y))
    assert counter.frame_count == 1


def test_anti_collapse_messages(backend):
    op = "AntiCollapseLoss: "
    contract.check_messages(
        losses.AntiCollapseLoss,
        {"base_loss": losses.RankedListLoss()},
        [
            ({"on": "weights"}, op + "on must be 'features' or 'batch_proxies' or 'all_proxies', got 'weights'"),
            ({"on": "all_proxies"}, op + "on must be 'features' for a base loss without proxies, got 'all_proxies'"),
            ({"form": "rate"}, op + "form must be 'neg_rate' or 'exp_neg_rate', got 'rate'"),
            ({"scale": "mine"}, op + "scale must be 'mcr2' or 'official_proxy', got 'mine'"),
            ({"rate_weight": 0}, op + "rate_weight must be a positive number, got 0"),
        ],
    )


def test_a_zero_pivot_above_the_small_kernel(backend, device):
    a = torch.stack([torch.eye(100), torch.zeros(100, 100)]).to(device).requires_grad_()
    logdet = F.cholesky_logdet(a, check=False)
    assert logdet[0].item() == 0
    assert bool(logdet[1].isnan())
    (grad,) = torch.autograd.grad(logdet[0], a)
    torch.testing.assert_close(grad[0], torch.eye(100, device=device))
