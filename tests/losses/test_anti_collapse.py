"""AntiCollapseLoss and its term: the underflow of the exponential form, and the sum with a base loss."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch._dynamo.testing
from support import contract
from support.contract import assert_close

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.losses import anti_collapse
from dmlkernels.testing import evaluate, make_pairs

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


@pytest.mark.parametrize("rate_weight", [1.0, 0.1, 3.0])
def test_forms_of_the_rate(backend, device, rate_weight):
    x = make_pairs("random", 12, d=6, dtype=torch.float64, device=device).embeddings
    rate = F.coding_rate(x)
    assert float(F.anti_collapse_loss(x)) == -float(rate)
    term = F.anti_collapse_loss(x, form="exp_neg_rate", rate_weight=rate_weight)
    assert float(term) == pytest.approx(math.exp(-rate_weight * float(rate)), rel=1e-12)


def test_published_setting(backend, device):
    """45 proxies of width 512 with the authors' scale: R = 3.6."""
    x = make_pairs("random", 45, d=512, device=device).embeddings
    assert float(F.coding_rate(x, scale="official_proxy")) == pytest.approx(3.6, abs=0.1)


# AntiCollapseLoss.

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


@pytest.mark.heavy
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
