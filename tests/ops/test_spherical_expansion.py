"""spherical_expansion: centres, synthetics, and their gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.contract import FLOAT_IDS, FLOATS, assert_close
from support.spherical_expansion import Problem

from dmlkernels import functional as F
from dmlkernels.testing import INTEGER_DTYPES, assert_matches, evaluate, make_pairs


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def frame_by_qr(p, v1, noise):
    """v_2 … v_n: Gram-Schmidt keeps the direction of each row, which fixes the signs that QR leaves open."""
    q, r = np.linalg.qr(np.stack([p, v1, *noise], 1))
    return (q * np.sign(np.diagonal(r))).T[2:]


def synthetics(z, p, q_rows, n):
    """z_1 … z_n (n, D) of one sample, with the directions q (n, D) held fixed."""
    z = unit(z)
    along = (z @ p) * p
    r = z - along
    return along - r / n + np.linalg.norm(r) * q_rows


def parts(problem, i):
    """p and q (n, D) of sample i."""
    z = unit(problem.z[i].cpu().double().numpy())
    p = unit(problem.proxies[problem.labels[i]].cpu().double().numpy())
    v1 = unit(z - (z @ p) * p)
    frame = frame_by_qr(p, v1, problem.noise[i].cpu().double().numpy())
    centers = F.max_mahalanobis_centers(problem.n).numpy()[1:]
    return p, centers[:, 1:] @ frame if problem.n > 1 else np.zeros((1, len(z)))


# The centres.


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 15, 16, 31, 64, 200])
def test_centers_are_a_regular_simplex(n):
    c = F.max_mahalanobis_centers(n)
    assert c.dtype == torch.float64
    assert c.shape == (n + 1, n)
    gram = torch.full((n + 1, n + 1), -1 / n, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(c @ c.T, gram, rtol=0, atol=1e-13)
    torch.testing.assert_close(c.sum(0), torch.zeros(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(c.triu(1), torch.zeros_like(c))
    assert torch.equal(c[0], torch.eye(n, dtype=torch.float64)[0])


def test_centers_by_recursion():
    """Pang et al.'s Algorithm 1, entry by entry."""
    n = 7
    vertices, mu = n + 1, np.zeros((n + 1, n))
    mu[0, 0] = 1
    for i in range(1, vertices):
        for j in range(min(i, n)):
            mu[i, j] = -(1 / (vertices - 1) + mu[i] @ mu[j]) / mu[j, j]
        if i < n:
            mu[i, i] = math.sqrt(1 - mu[i] @ mu[i])
    np.testing.assert_allclose(F.max_mahalanobis_centers(n), mu, atol=1e-14)


# Values and gradients against the formula.


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("d", ["tight", 24, 65])
def test_against_the_formula(backend, device, d, n):
    problem = Problem(11, n + 1 if d == "tight" else d, n, seed=1, device=device)
    out, labels, valid = problem.expand()
    assert bool(valid.all())
    assert torch.equal(labels, problem.labels.repeat_interleave(n))
    for i in range(11):
        p, q = parts(problem, i)
        expected = synthetics(problem.z[i].cpu().numpy(), p, q, n)
        np.testing.assert_allclose(out[i * n : (i + 1) * n].cpu(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_gradient_by_differences(backend, device, n):
    """∂/∂z of Σ w·z_k with the frame held fixed."""
    problem = Problem(6, 9, n, seed=2, device=device)
    weights = torch.randn(6 * n, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grad = evaluate(problem.function(), [problem.z], weights.to(device)).grads[0].cpu().numpy()
    step = 1e-6
    for i in range(6):
        p, q = parts(problem, i)
        z, w = problem.z[i].cpu().numpy(), weights[i * n : (i + 1) * n].numpy()
        for k in range(9):
            e = step * np.eye(9)[k]
            slope = (w * (synthetics(z + e, p, q, n) - synthetics(z - e, p, q, n))).sum() / (2 * step)
            assert grad[i, k] == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("d", [3, 8])
def test_gradcheck_without_a_frame(backend, device, d):
    """n = 1 mirrors z at its proxy: nothing is held fixed."""
    problem = Problem(7, d, 1, seed=4, device=device)
    assert torch.autograd.gradcheck(problem.function(), [problem.z.requires_grad_()])


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates", "large_norms"])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_every_dtype(kernel, device, dtype, n, kind):
    problem = Problem(40, 24, n, dtype, seed=5, device=device, kind=kind)
    reference = _reference_in(problem)
    assert_matches(problem.function(), [problem.z], reference=reference, max_quiet=1.0)


def _reference_in(problem):
    """The problem in the dtype of the samples that it is called with."""

    def function(z):
        proxies, noise = problem.proxies.to(z.dtype), problem.noise.to(z.dtype)
        options = {"n": problem.n, "noise": noise, "differentiable": True}
        return F.spherical_expansion(z, problem.labels, proxies, **options).embeddings

    return function


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [2, 3, 4, 8, 9, 15, 17, 33, 64, 130, 512])
def test_widths(kernel, device, d, dtype):
    problem = Problem(20, d, min(8, d - 1), dtype, seed=6, device=device)
    assert_matches(problem.function(), [problem.z], reference=_reference_in(problem), max_quiet=1.0)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("n", [3, 16])
def test_samples(kernel, device, m, n):
    problem = Problem(m, 20, n, torch.float32, seed=7, device=device)
    assert_matches(problem.function(), [problem.z], reference=_reference_in(problem), max_quiet=1.0)


# Invariants.


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n, d", [(1, 2), (1, 64), (2, 3), (8, 9), (8, 64), (8, 512), (32, 33), (32, 128)])
def test_invariants(backend, device, n, d, dtype):
    problem = Problem(50, d, n, dtype, seed=8, device=device)
    out = problem.expand().embeddings.double().reshape(50, n, d)
    z = torch.nn.functional.normalize(problem.z.double(), dim=1)
    p = torch.nn.functional.normalize(problem.proxies.double(), dim=1)[problem.labels]
    eps = 16 * torch.finfo(dtype).eps * n**0.5
    close = {"rtol": 0, "atol": eps}
    torch.testing.assert_close(out.norm(dim=2), torch.ones(50, n, dtype=torch.float64, device=device), **close)
    similarity = (z * p).sum(1)
    torch.testing.assert_close((out * p[:, None]).sum(2), similarity[:, None].expand(50, n), **close)
    m = similarity[:, None] * p
    residuals = torch.cat([z[:, None], out], 1) - m[:, None]
    torch.testing.assert_close(residuals.sum(1), torch.zeros_like(m), rtol=0, atol=eps * n)
    simplex = torch.full((n + 1, n + 1), -1 / n, dtype=torch.float64, device=device).fill_diagonal_(1)
    expected = (1 - similarity.square())[:, None, None] * simplex
    torch.testing.assert_close(residuals @ residuals.mT, expected, rtol=0, atol=4 * eps)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_near_the_proxy(backend, device, distance, dtype):
    """The circle shrinks with ‖r‖; its errors stay those of unit rows."""
    problem = Problem(20, 16, 4, dtype, seed=9, device=device)
    own = torch.nn.functional.normalize(problem.proxies[problem.labels], dim=1)
    problem.z = own + distance * torch.nn.functional.normalize(problem.z, dim=1)
    out, _, valid = problem.expand()
    assert bool(valid.all())
    eps = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.norm(dim=1), torch.ones_like(out[:, 0]), rtol=0, atol=eps)
    similarity = (torch.nn.functional.normalize(problem.z, dim=1) * own).sum(1)
    got = (out * own.repeat_interleave(4, 0)).sum(1)
    torch.testing.assert_close(got, similarity.repeat_interleave(4), rtol=0, atol=eps)
    assert float((out - own.repeat_interleave(4, 0)).norm(dim=1).max()) < 2 * distance + eps


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_only_directions_matter(backend, device, scale):
    problem = Problem(20, 16, 4, seed=10, device=device)
    once = evaluate(problem.function(), [problem.z])
    problem.proxies, problem.noise = problem.proxies * 3, problem.noise * 7
    again = evaluate(problem.function(), [problem.z * scale])
    again.grads = [again.grads[0] * scale]
    assert_close(again, once, factor=1024)


# Samples without a direction.


@pytest.mark.parametrize("n", [1, 4])
def test_a_sample_on_its_proxy(backend, device, dtype, n):
    """Its rows are copies of it, its flag is False, and the others are not touched."""
    problem = Problem(12, 16, n, dtype, seed=11, device=device)
    whole = problem.expand()
    for i, factor in ((0, 1.0), (5, 2.0), (11, -1.0)):
        problem.z[i] = factor * problem.proxies[problem.labels[i]]
    out, labels, valid = problem.expand()
    lost = torch.zeros(12, dtype=torch.bool, device=device)
    lost[[0, 5, 11]] = True
    assert torch.equal(valid, ~lost)
    assert torch.equal(labels, whole.labels)
    rows = lost.repeat_interleave(n)
    own = torch.nn.functional.normalize(problem.z.double(), dim=1).repeat_interleave(n, 0)
    close = {"rtol": 0, "atol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out[rows].double(), own[rows], **close)
    assert torch.equal(out[~rows], whole.embeddings[~rows])
    grad = evaluate(problem.function(), [problem.z]).grads[0]
    assert bool(grad.isfinite().all())


def test_zero_rows(backend, device):
    """A sample without a direction of its own is a copy of itself; a zero proxy is orthogonal to everything."""
    problem = Problem(10, 12, 3, seed=12, device=device)
    problem.z[4] = 0
    out, _, valid = problem.expand()
    assert valid.tolist() == [i != 4 for i in range(10)]
    assert torch.equal(out[12:15], torch.zeros_like(out[12:15]))
    grad = evaluate(problem.function(), [problem.z]).grads[0]
    assert torch.equal(grad[4], torch.zeros_like(grad[4]))
    problem.z[4] = 1
    problem.proxies.zero_()
    out, _, valid = problem.expand()
    assert bool(valid.all())
    torch.testing.assert_close(out.norm(dim=1), torch.ones_like(out[:, 0]))


@pytest.mark.parametrize("where", ["z", "proxies", "noise"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_rows(backend, device, where, bad):
    """They reach the loss: the rows are NaN and valid."""
    problem = Problem(10, 12, 3, seed=13, device=device)
    problem.labels = torch.arange(10, device=device) % 5
    getattr(problem, where)[(3, *[0] * (getattr(problem, where).ndim - 1))] = bad
    out, _, valid = problem.expand()
    hit = {3, 8} if where == "proxies" else {3}
    assert bool(valid.all())
    rows = out.reshape(10, 3, 12)
    for i in range(10):
        assert bool(rows[i].isnan().any() if i in hit else rows[i].isfinite().all())


@pytest.mark.parametrize("where", ["z", "proxies"])
def test_overflowing_norms(backend, device, where):
    """Finite numbers whose squares are not: the row would count as zero, and as a sample on its proxy."""
    problem = Problem(10, 12, 3, torch.float32, seed=13, device=device)
    problem.labels = torch.arange(10, device=device) % 5
    getattr(problem, where)[3] = 1e30
    out, _, valid = problem.expand()
    assert bool(valid.all())
    assert bool(out.reshape(10, 36)[3].isnan().all())


# Class means in the place of proxies.


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_class_means(backend, device, label_dtype):
    classes = 2 if label_dtype == torch.bool else 9
    pairs = make_pairs("random", 40, d=12, classes=classes, dtype=torch.float64, seed=14, device=device)
    names = pairs.labels if label_dtype == torch.bool else pairs.labels * 13 - (50 if label_dtype.is_signed else 0)
    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[pairs.labels == c].mean(0) for c in range(classes)])
    noise = torch.randn(40, 2, 12, dtype=torch.float64).to(device)
    got = F.spherical_expansion(pairs.embeddings, names.to(label_dtype), n=3, noise=noise)
    expected = F.spherical_expansion(pairs.embeddings, pairs.labels, means, n=3, noise=noise)
    torch.testing.assert_close(got.embeddings, expected.embeddings)
    assert torch.equal(got.valid, expected.valid)
    assert torch.equal(got.labels, names.to(torch.int64).repeat_interleave(3))


@pytest.mark.parametrize("index", [None, [6, 0, 3]])
def test_classes_of_one_sample(backend, device, dtype, index):
    pairs = make_pairs("random", 8, d=12, dtype=dtype, seed=15, device=device)
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 3, -9], device=device)
    chosen = None if index is None else torch.tensor(index, device=device)
    out, _, valid = F.spherical_expansion(pairs.embeddings, labels, n=4, index=chosen)
    alone = [False, False, True, False, False, False, True, True]
    assert valid.tolist() == [not alone[i] for i in (index or range(8))]
    own = torch.nn.functional.normalize(pairs.embeddings.double(), dim=1)
    for place, i in enumerate(index or range(8)):
        copies = out[4 * place : 4 * place + 4].double()
        same = float((copies - own[i]).abs().max()) <= 2 * torch.finfo(dtype).eps
        assert same == alone[i]


def test_class_means_are_constants(backend, device):
    """The gradient is that of the samples against given proxies."""
    pairs = make_pairs("random", 20, d=10, classes=4, dtype=torch.float64, seed=16, device=device)
    noise = torch.randn(20, 2, 10, dtype=torch.float64).to(device)
    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[pairs.labels == c].mean(0) for c in range(4)])

    def expand(z, proxies=None):
        return F.spherical_expansion(z, pairs.labels, proxies, n=3, noise=noise, differentiable=True).embeddings

    got = evaluate(expand, [pairs.embeddings])
    assert_close(got, evaluate(lambda z: expand(z, means), [pairs.embeddings]), factor=1024)
