"""soft_triple: values, gradients of embeddings and centers, and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.contract import FLOAT_IDS, FLOATS, assert_close, thinned
from support.soft_triple import Problem

from dmlkernels import functional as F
from dmlkernels.testing import INTEGER_DTYPES, KINDS, assert_matches, evaluate

OPTIONS = {
    "default": {},
    "soft": {"la": 4.0, "gamma": 1.0, "margin": 0.3},
    "sharp": {"la": 60.0, "gamma": 0.02, "margin": 0.0},
    "negative_margin": {"la": 10.0, "margin": -0.2},
    "unnormalized": {"la": 0.5, "gamma": 2.0, "margin": 1.0, "normalize": False},
}
# (embeddings, classes, centers of a class): a tile of 128 centers holds 128, 42, 12, 2, 1 and 1 classes.
SIZES = [(140, 150, 1), (30, 50, 3), (140, 30, 10), (50, 5, 64), (20, 4, 65), (30, 3, 128)]


def match(problem, options=None, **rule):
    """Its weights are products of softmax weights with exponents up to λ (1 + δ) and 1/γ."""
    options = options or {}
    la, gamma, margin = options.get("la", 20.0), options.get("gamma", 0.1), options.get("margin", 0.01)
    exponent = max(1.0, la * (1 + abs(margin)) + 1 / gamma)
    rule = {"normalize": options.get("normalize", True), "exponent": exponent, "max_quiet": 1.0, **rule}
    return assert_matches(problem.function(**options), problem.tensors, **rule)


def by_loops(x, y, w, k, la=20.0, gamma=0.1, margin=0.01, normalize=True):
    """Loss, gradients of the rows of x and w: the definition over float64 numbers."""
    lengths = [np.sqrt((t * t).sum(1)) if normalize else np.ones(len(t)) for t in (x, w)]
    f, g = (t / np.where(n > 0, n, 1)[:, None] for t, n in zip((x, w), lengths))
    m, classes = len(f), len(g) // k
    loss, grad_f, grad_g = 0.0, np.zeros_like(f), np.zeros_like(g)
    for i in range(m):
        logits, slopes = [], []
        for c in range(classes):
            s = [float(f[i] @ g[c * k + j]) for j in range(k)]
            shares = [math.exp((v - max(s)) / gamma) for v in s]
            shares = [p / sum(shares) for p in shares]
            mean = sum(p * v for p, v in zip(shares, s))
            slopes.append([p * (1 + (v - mean) / gamma) for p, v in zip(shares, s)])
            logits.append(la * (mean - (margin if c == y[i] else 0)))
        total = sum(math.exp(v - logits[y[i]]) for v in logits)
        loss += math.log(total) / m
        for c in range(classes):
            weight = la * (math.exp(logits[c] - logits[y[i]]) / total - (c == y[i])) / m
            for j in range(k):
                grad_f[i] += weight * slopes[c][j] * g[c * k + j]
                grad_g[c * k + j] += weight * slopes[c][j] * f[i]
    if normalize:
        for grad, unit, n in ((grad_f, f, lengths[0]), (grad_g, g, lengths[1])):
            grad -= (grad * unit).sum(1, keepdims=True) * unit
            grad /= np.where(n > 0, n, np.inf)[:, None]
    return loss, grad_f, grad_g


# Values and gradients against loops over the formula.


@pytest.mark.parametrize("m, c, k", [(1, 1, 1), (1, 4, 3), (9, 1, 2), (12, 5, 1), (5, 12, 4), (4, 2, 70)])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_loops(backend, device, name, m, c, k):
    problem = Problem(m, c, k, 6, torch.float64, 1, device, "zero_rows" if m > 3 else "random")
    outcome = evaluate(problem.function(**OPTIONS[name]), problem.tensors, torch.tensor(1.5, device=device))
    x, y, w = (t.cpu().numpy() for t in (problem.embeddings, problem.labels, problem.centers))
    loss, grad_x, grad_w = by_loops(x, y, w, k, **OPTIONS[name])
    np.testing.assert_allclose(outcome.value.cpu(), loss, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(outcome.grads[0].cpu(), 1.5 * grad_x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(outcome.grads[1].cpu(), 1.5 * grad_w, rtol=1e-10, atol=1e-12)


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kernel, device, dtype, kind):
    match(Problem(130, 14, 10, 16, dtype, 3, device, kind))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("m, c, k", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(kernel, device, name, m, c, k, dtype):
    match(Problem(m, c, k, 12, dtype, 4, device), OPTIONS[name])


@pytest.mark.parametrize("m", thinned([1, 2, 15, 17, 63, 64, 65, 127, 128, 129, 257], 1, 65, 129))
@pytest.mark.parametrize("c", thinned([1, 3, 12, 13, 26], 1, 13))
def test_tiles(kernel, device, m, c):
    match(Problem(m, c, 10, 8, torch.float32, 5, device))


@pytest.mark.parametrize("k", thinned([1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128], 7, 33))
def test_every_number_of_centers(kernel, device, k):
    match(Problem(40, 260 // k + 2, k, 8, torch.float32, 6, device))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", thinned([2, 3, 8, 15, 17, 33, 64, 130, 512, 1024], 3, 64, 130))
def test_widths(kernel, device, d, dtype):
    match(Problem(60, 11, 4, d, dtype, 7, device))


@pytest.mark.heavy
@pytest.mark.parametrize("c, k", thinned([(3000, 1), (700, 10), (160, 10), (40, 100)], (160, 10)))
def test_many_centers(kernel, device, c, k):
    match(Problem(50, c, k, 16, torch.float32, 8, device))


@pytest.mark.large
def test_many_embeddings(kernel, device):
    match(Problem(3000, 7, 10, 16, torch.float32, 9, device))


@pytest.mark.parametrize("options", [{"la": 1000.0}, {"gamma": 1e-3}, {"la": 300.0, "gamma": 1e-4}])
def test_large_exponents(kernel, device, options):
    """e^{λ S} and e^{s/γ} alone would overflow."""
    truth = match(Problem(70, 20, 5, 12, torch.float32, 10, device), options)
    assert bool(truth.value.isfinite())


def test_small_losses_are_exact(backend, device):
    """Each embedding on a center of its class: log(1 + e^{-20 (1 - 0.01)}) is e^{-19.8}, not log 1."""
    x = torch.eye(2, 8, device=device)
    loss = F.soft_triple_loss(x, torch.arange(2, device=device), x, centers_per_class=1)
    assert float(loss) == pytest.approx(math.exp(-19.8), rel=1e-5)


# Gradients by differences.


@pytest.mark.heavy
@pytest.mark.parametrize("m, c, k", thinned([(6, 3, 2), (4, 7, 1), (3, 2, 5)], (3, 2, 5)))
@pytest.mark.parametrize("name", thinned(["soft", "negative_margin", "unnormalized"], "soft", "unnormalized"))
def test_gradcheck(backend, device, name, m, c, k):
    problem = Problem(m, c, k, 5, torch.float64, 11, device)
    leaves = [t.requires_grad_() for t in problem.tensors]
    assert torch.autograd.gradcheck(problem.function(**OPTIONS[name]), leaves)


# Properties.


@pytest.mark.heavy
def test_row_order_does_not_matter(backend, device):
    """Of embeddings, classes and the centers of a class."""
    problem = Problem(140, 30, 6, 8, torch.float64, 12, device)
    generator = torch.Generator().manual_seed(1)
    order, names, within = (torch.randperm(n, generator=generator).to(device) for n in (140, 30, 6))
    moved = (names[:, None] * 6 + within).flatten()
    a = evaluate(problem.function(), problem.tensors)
    problem.labels = names.argsort()[problem.labels[order]]
    b = evaluate(problem.function(), [problem.embeddings[order], problem.centers[moved]])
    a.grads = [a.grads[0][order], a.grads[1][moved]]
    assert_close(b, a, factor=4096)


def test_one_center_is_the_softmax_loss(backend, device):
    problem = Problem(140, 150, 1, 8, torch.float64, 13, device)

    def softmax_loss(x, w):
        own = torch.nn.functional.one_hot(problem.labels, 150)
        logits = 20 * (F.pairwise_similarity(x, w) - 0.01 * own.to(x.dtype))
        return torch.nn.functional.cross_entropy(logits, problem.labels)

    assert_close(evaluate(problem.function(), problem.tensors), evaluate(softmax_loss, problem.tensors), factor=4096)


def test_equal_centers_are_one_center(backend, device):
    problem = Problem(60, 20, 1, 8, torch.float64, 14, device)
    one = evaluate(problem.function(), problem.tensors)
    problem.per_class = 7
    seven = evaluate(problem.function(), [problem.embeddings, problem.centers.repeat_interleave(7, 0)])
    seven.grads[1] = seven.grads[1].view(20, 7, 8).sum(1)
    assert_close(seven, one, factor=4096)


def test_one_class_has_no_loss(backend, device):
    problem = Problem(30, 1, 10, 8, device=device)
    outcome = evaluate(problem.function(), problem.tensors)
    assert float(outcome.value) == 0
    assert not any(bool(grad.any()) for grad in outcome.grads)


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_label_dtypes(backend, device, label_dtype):
    problem = Problem(60, 2 if label_dtype == torch.bool else 9, 3, 8, device=device)
    got = F.soft_triple_loss(
        problem.embeddings, problem.labels.to(label_dtype), problem.centers, centers_per_class=problem.per_class
    )
    assert torch.equal(got, problem.function()(*problem.tensors))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_rows_does_not_matter(backend, device, scale):
    problem = Problem(40, 9, 3, 8, torch.float64, 15, device)
    a = evaluate(problem.function(), problem.tensors)
    b = evaluate(problem.function(), [problem.embeddings * scale, problem.centers])
    b.grads[0] = b.grads[0] * scale
    assert_close(b, a, factor=4096)
