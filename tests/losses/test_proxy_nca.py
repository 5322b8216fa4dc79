"""ProxyNCA on every backend: the function, the module and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import contract

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import assert_matches, evaluate, make_labels


def problem(rows: int, classes: int, width: int = 5, dtype: torch.dtype = torch.float64, device: str = "cpu"):
    """Embeddings, labels that leave the last class out, and proxies."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, dtype=torch.float64, generator=generator)
    proxies = torch.randn(classes, width, dtype=torch.float64, generator=generator)
    labels = make_labels("shuffled", rows, max(classes - 1, 1), generator=generator)
    return x.to(device, dtype), labels.to(device), proxies.to(device, dtype)


def by_loops(x, labels, proxies, scale, normalize):
    """Value, and gradients by the embeddings and by the proxies, from the formula."""
    total, to_x, to_p = 0.0, np.zeros_like(x), np.zeros_like(proxies)
    lengths = [np.array([math.sqrt(r @ r) for r in rows])[:, None] if normalize else 1.0 for rows in (x, proxies)]
    f, g = x / lengths[0], proxies / lengths[1]
    for i, y in enumerate(labels):
        scores = [-scale * float((f[i] - row) @ (f[i] - row)) for row in g]
        odds = [math.exp(s - scores[y]) for s in scores]
        total += math.log(math.fsum(odds)) / len(x)
        for c, row in enumerate(g):
            slope = (odds[c] / math.fsum(odds) - (c == y)) / len(x) * -2 * scale
            to_x[i] += slope * (f[i] - row)
            to_p[c] += slope * (row - f[i])
    if normalize:
        to_x = (to_x - (to_x * f).sum(1, keepdims=True) * f) / lengths[0]
        to_p = (to_p - (to_p * g).sum(1, keepdims=True) * g) / lengths[1]
    return total, to_x, to_p


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("scale", [1.0, 9.0])
@pytest.mark.parametrize("rows, classes", [(12, 5), (1, 3), (7, 1)])
def test_brute_force(backend, device, rows, classes, scale, normalize):
    x, labels, proxies = problem(rows, classes, device=device)
    expected, *grads = by_loops(x.cpu().numpy(), labels.tolist(), proxies.cpu().numpy(), scale, normalize)

    def function(x, proxies):
        return F.proxy_nca_loss(x, labels, proxies, softmax_scale=scale, normalize=normalize)

    outcome = evaluate(function, [x, proxies], torch.ones((), device=device))
    assert outcome.value.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert (expected > 0) == (classes > 1)
    for got, wanted in zip(outcome.grads, grads, strict=True):
        np.testing.assert_allclose(got.cpu().numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_every_dtype(kernel, device, dtype):
    x, labels, proxies = problem(130, 20, 16, dtype, device)

    def function(x, proxies):
        return F.proxy_nca_loss(x, labels, proxies, softmax_scale=9.0)

    assert_matches(function, [x, proxies], scale=4.0, exponent=36.0, max_quiet=0.3)


@pytest.mark.heavy
def test_gradcheck(backend, device):
    x, labels, proxies = problem(6, 4, device=device)
    leaves = [x.requires_grad_(), proxies.requires_grad_()]
    assert torch.autograd.gradcheck(lambda x, p: F.proxy_nca_loss(x, labels, p, softmax_scale=3.0), leaves)


def test_far_from_every_proxy(backend, device):
    """Rows of length 100 and scale 9: scores of 1e5 in float32."""
    x, labels, proxies = problem(20, 6, device=device)
    options = {"softmax_scale": 9.0, "normalize": False}
    expected = F.proxy_nca_loss(100 * x, labels, proxies, **options)
    actual = F.proxy_nca_loss(100 * x.float(), labels, proxies.float(), **options)
    assert float(actual) == pytest.approx(float(expected), rel=1e-4)


def test_no_embeddings(backend, device):
    x, labels, proxies = problem(0, 4, device=device)
    outcome = evaluate(lambda x, p: F.proxy_nca_loss(x, labels, p), [x, proxies])
    assert outcome.value.item() == 0
    assert not outcome.grads[1].any()


def test_non_finite(backend, device):
    for k in (0, 1):
        x, labels, proxies = problem(12, 5, device=device)
        (x, proxies)[k][2, 1] = torch.nan
        assert bool(F.proxy_nca_loss(x, labels, proxies).isnan())


def test_module(backend, device):
    x, labels, proxies = problem(12, 5, device=device)
    loss = losses.ProxyNCALoss(5, 5, softmax_scale=3.0).to(device, torch.float64)
    assert 0.5 < float(loss.proxies.detach().std()) < 1.5
    loss.load_state_dict({"proxies": proxies})
    value = loss(x, labels)
    assert torch.equal(value, F.proxy_nca_loss(x, labels, proxies, softmax_scale=3.0))
    value.backward()
    assert bool(loss.proxies.grad.any())
    f, g = (torch.nn.functional.normalize(t, dim=1) for t in (x, proxies))
    squared = torch.cdist(f, g).square()
    own = labels[:, None] == torch.arange(5, device=device)
    assert float(loss.last_stats["mean_pos_squared_distance"]) == pytest.approx(float(squared[own].mean()))
    assert float(loss.last_stats["mean_neg_squared_distance"]) == pytest.approx(float(squared[~own].mean()))
    assert not any(v.requires_grad for v in loss.last_stats.values())
    assert repr(loss) == "ProxyNCALoss(num_classes=5, embedding_size=5, softmax_scale=3.0, normalize=True)"


def test_a_label_without_a_proxy_is_seen_in_a_graph(kernel, device):
    """The operator looks at the labels, or on a GPU, which nobody waits for, makes the loss NaN."""
    x, labels, proxies = problem(8, 4, device=device)

    def function(x, proxies):
        return F.proxy_nca_loss(x, labels, proxies)

    contract.check_compiled(function, [x, proxies])
    labels[2] = 4
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    if kernel.asynchronous:
        assert bool(compiled(x, proxies).isnan())
    else:
        with pytest.raises(ValueError, match=r"^pair_loss: labels must be in \[0, C\) with C=4, got 4$"):
            compiled(x, proxies)


def test_messages(backend):
    x, labels, proxies = problem(6, 4)
    op = "proxy_nca_loss: "
    contract.check_messages(
        F.proxy_nca_loss,
        {"embeddings": x, "labels": labels, "proxies": proxies},
        [
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (5,)"),
            ({"labels": labels[:4]}, op + "labels must be (M,) with M=6, got (4,)"),
            ({"proxies": proxies[:, :3]}, op + "proxies must be (C, D) with D=5, got (4, 3)"),
            ({"proxies": proxies[:0]}, op + "labels must be in [0, C) with C=0, got 6 labels"),
            ({"softmax_scale": 0}, op + "softmax_scale must be a positive number, got 0"),
        ],
    )
    for outside, number in ((labels + 4, 6), (labels - 4, -4)):
        contract.check_outside(F.proxy_nca_loss, (x, outside, proxies), number, 4, backend)
    with pytest.raises(ValueError, match="ProxyNCALoss: softmax_scale must be a positive number, got -1"):
        losses.ProxyNCALoss(4, 5, softmax_scale=-1)
    with pytest.raises(ValueError, match="ProxyNCALoss: ref_emb must be None, since this loss is not one of pairs"):
        losses.ProxyNCALoss(4, 5)(x, labels, ref_emb=x)
