"""proxy_anchor: values, gradients of embeddings and proxies, and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.contract import FLOAT_IDS, FLOATS, assert_close
from support.proxy_anchor import Problem

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import INTEGER_DTYPES, KINDS, assert_matches, evaluate

OPTIONS = {
    "default": {},
    "soft": {"alpha": 4.0, "margin": 0.3},
    "sharp": {"alpha": 64.0, "margin": 0.0},
    "negative_margin": {"alpha": 10.0, "margin": -0.2},
    "unnormalized": {"alpha": 0.5, "margin": 1.0, "normalize": False},
}


def match(problem, options=None, **rule):
    """Its weights are softmax weights of exponents up to α (1 + δ), or α times the largest product."""
    options = options or {}
    alpha, margin = options.get("alpha", 32.0), options.get("margin", 0.1)
    normalize = options.get("normalize", True)
    rule = {"normalize": normalize, "exponent": max(1.0, alpha * (1 + abs(margin))), "max_quiet": 1.0, **rule}
    return assert_matches(problem.function(**options), problem.tensors, **rule)


def by_loops(x, y, p, alpha=32.0, margin=0.1, normalize=True):
    """Loss, gradients of the rows of x and p: the definition over float64 numbers."""
    lengths = [np.sqrt((t * t).sum(1)) if normalize else np.ones(len(t)) for t in (x, p)]
    f, g = (t / np.where(n > 0, n, 1)[:, None] for t, n in zip((x, p), lengths))
    classes, present = len(p), sorted(set(y.tolist()))
    loss, grad_f, grad_g = 0.0, np.zeros_like(f), np.zeros_like(g)
    for c in range(classes):
        for sign, rows, count in (
            (-1, [i for i in range(len(f)) if y[i] == c], len(present)),
            (1, [i for i in range(len(f)) if y[i] != c], classes),
        ):
            weights = {i: math.exp(sign * alpha * (f[i] @ g[c] + sign * margin)) for i in rows}
            total = 1 + sum(weights.values())
            loss += math.log(total) / count
            for i, w in weights.items():
                slope = sign * alpha * w / total / count
                grad_f[i] += slope * g[c]
                grad_g[c] += slope * f[i]
    if normalize:
        for grad, unit, n in ((grad_f, f, lengths[0]), (grad_g, g, lengths[1])):
            grad -= (grad * unit).sum(1, keepdims=True) * unit
            grad /= np.where(n > 0, n, np.inf)[:, None]
    return loss, grad_f, grad_g


# Values and gradients against loops over the formula.


@pytest.mark.parametrize("m, c", [(1, 1), (1, 4), (9, 1), (12, 5), (5, 12)])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_loops(backend, device, name, missing, m, c):
    problem = Problem(m, c, 6, torch.float64, 1, device, "zero_rows" if m > 3 else "random", missing)
    outcome = evaluate(problem.function(**OPTIONS[name]), problem.tensors, torch.tensor(1.5, device=device))
    x, y, p = (t.cpu().numpy() for t in (problem.embeddings, problem.labels, problem.proxies))
    loss, grad_x, grad_p = by_loops(x, y, p, **OPTIONS[name])
    np.testing.assert_allclose(outcome.value.cpu(), loss, rtol=1e-12)
    np.testing.assert_allclose(outcome.grads[0].cpu(), 1.5 * grad_x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(outcome.grads[1].cpu(), 1.5 * grad_p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("alpha, margin", [(32.0, 0.1), (64.0, 0.2), (8.0, 0.0)])
@pytest.mark.parametrize("m, c", [(60, 12), (20, 50)])
def test_agrees_with_pytorch_metric_learning(backend, device, m, c, alpha, margin, dtype):
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    problem = Problem(m, c, 16, dtype, seed=2, device=device)
    theirs = peer.ProxyAnchorLoss(c, 16, margin=margin, alpha=alpha).to(device)
    theirs.proxies.data.copy_(problem.proxies)

    def spelled(x, p):
        return torch.func.functional_call(theirs, {"proxies": p}, (x, problem.labels))

    got = evaluate(problem.function(alpha=alpha, margin=margin), problem.tensors)
    assert_close(got, evaluate(spelled, problem.tensors), factor=256 * alpha)
    torch.testing.assert_close(
        losses.ProxyAnchorLoss(c, 16).alpha, float(peer.ProxyAnchorLoss(c, 16).alpha), rtol=0, atol=0
    )


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kernel, device, dtype, kind, missing):
    match(Problem(130, 20, 16, dtype, 3, device, kind, missing))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("m, c", [(140, 30), (30, 140), (140, 133)])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(kernel, device, name, m, c, dtype):
    match(Problem(m, c, 12, dtype, 4, device), OPTIONS[name])


@pytest.mark.parametrize("m", [1, 2, 15, 17, 63, 127, 128, 129, 257])
@pytest.mark.parametrize("c", [1, 3, 128, 129])
def test_tiles(kernel, device, m, c):
    match(Problem(m, c, 8, torch.float32, 5, device))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [2, 3, 8, 15, 17, 33, 64, 130, 512, 1024])
def test_widths(kernel, device, d, dtype):
    match(Problem(60, 11, d, dtype, 6, device))


def test_many_proxies(kernel, device):
    match(Problem(50, 3000, 16, torch.float32, 7, device))


@pytest.mark.parametrize("alpha", [200.0, 1000.0])
def test_large_exponents(kernel, device, alpha):
    """e^{α (s + δ)} alone would overflow."""
    truth = match(Problem(70, 20, 12, torch.float32, 8, device), {"alpha": alpha, "margin": 0.2})
    assert bool(truth.value.isfinite())


def test_small_terms_are_exact(backend, device):
    """A proxy on its only embedding: log(1 + e^{-α (1 - δ)}) is e^{-28.8}, not log 1."""
    x = torch.eye(2, 8, device=device)
    apart = F.proxy_anchor_loss(x[:1], torch.zeros(1, dtype=torch.int64, device=device), x[:1])
    assert float(apart) == pytest.approx(math.exp(-28.8), rel=1e-5)


# Gradients by differences.


@pytest.mark.heavy
@pytest.mark.parametrize("m, c", [(6, 3), (4, 7)])
@pytest.mark.parametrize("name", ["soft", "negative_margin", "unnormalized"])
def test_gradcheck(backend, device, name, m, c):
    problem = Problem(m, c, 5, torch.float64, 9, device)
    leaves = [t.requires_grad_() for t in problem.tensors]
    assert torch.autograd.gradcheck(problem.function(**OPTIONS[name]), leaves)


# Properties.


@pytest.mark.heavy
def test_row_order_does_not_matter(backend, device):
    problem = Problem(140, 30, 8, torch.float64, 10, device)
    order = torch.randperm(140, generator=torch.Generator().manual_seed(1)).to(device)
    names = torch.randperm(30, generator=torch.Generator().manual_seed(2)).to(device)
    a = evaluate(problem.function(), problem.tensors)
    problem.labels = names.argsort()[problem.labels[order]]
    b = evaluate(problem.function(), [problem.embeddings[order], problem.proxies[names]])
    a.grads = [a.grads[0][order], a.grads[1][names]]
    assert_close(b, a, factor=4096)


def test_absent_classes_only_push(backend, device):
    """Proxies without positives take part in the negative term; the positive term averages over the others."""
    problem = Problem(40, 12, 8, torch.float64, 11, device)
    extra = torch.randn(5, 8, dtype=torch.float64, device=device)
    more = torch.cat([problem.proxies, extra])
    s = F.pairwise_similarity(problem.embeddings, more)
    negative = torch.stack([torch.log1p((32 * (s[problem.labels != c, c] + 0.1)).exp().sum()) for c in range(17)])
    few = F.proxy_anchor_loss(problem.embeddings, problem.labels, problem.proxies)
    many = F.proxy_anchor_loss(problem.embeddings, problem.labels, more)
    torch.testing.assert_close(many - few, negative.mean() - negative[:12].mean())


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_label_dtypes(backend, device, label_dtype):
    problem = Problem(60, 2 if label_dtype == torch.bool else 9, 8, device=device)
    got = F.proxy_anchor_loss(problem.embeddings, problem.labels.to(label_dtype), problem.proxies)
    assert torch.equal(got, problem.function()(*problem.tensors))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_rows_does_not_matter(backend, device, scale):
    problem = Problem(40, 9, 8, torch.float64, 12, device)
    a = evaluate(problem.function(), problem.tensors)
    b = evaluate(problem.function(), [problem.embeddings * scale, problem.proxies])
    b.grads[0] = b.grads[0] * scale
    assert_close(b, a, factor=4096)
