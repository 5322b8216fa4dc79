"""SoftTripleLoss: the function with centers of its own."""

from __future__ import annotations

import pytest
import torch
from support.contract import assert_identical
from support.soft_triple import Problem

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate


@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "la": 8.0, "gamma": 0.5}, {"normalize": False, "la": 0.5}])
def test_module_is_the_function(backend, device, options):
    problem = Problem(40, 9, 3, 8, seed=18, device=device)
    module = losses.SoftTripleLoss(9, 8, centers_per_class=3, **options).to(device)

    def through_module(x, w):
        return torch.func.functional_call(module, {"centers": w}, (x, problem.labels))

    got = evaluate(through_module, problem.tensors)
    assert_identical(got, evaluate(problem.function(**options), problem.tensors))
    assert [name for name, _ in module.named_parameters()] == ["centers"]


def test_statistics(backend, device):
    problem = Problem(40, 9, 3, 8, torch.float64, 19, device)
    module = losses.SoftTripleLoss(9, 8, centers_per_class=3).double().to(device)
    module(problem.embeddings, problem.labels)
    stats = module.last_stats
    assert set(stats) == {"probability"}
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    s = F.pairwise_similarity(problem.embeddings, module.centers.detach()).view(40, 9, 3)
    similarity = ((10 * s).softmax(2) * s).sum(2)
    similarity[torch.arange(40), problem.labels] -= 0.01
    expected = (20 * similarity).softmax(1)[torch.arange(40), problem.labels].mean()
    torch.testing.assert_close(stats["probability"], expected)


@pytest.mark.large
def test_module_trains(backend, device):
    """A few steps bring embeddings to the centers of their class."""
    problem = Problem(60, 6, 3, 8, seed=20, device=device)
    torch.manual_seed(1)
    module = losses.SoftTripleLoss(6, 8, centers_per_class=3).to(device)
    x = problem.embeddings.requires_grad_()
    optimiser = torch.optim.Adam([x, *module.parameters()], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        module(x, problem.labels).backward()
        optimiser.step()
    nearest = F.pairwise_similarity(x, module.centers).argmax(1) // 3
    assert float((nearest == problem.labels).float().mean()) == 1
    assert float(module.last_stats["probability"]) > 0.9


@pytest.mark.parametrize("on", [None, "features"])
def test_anti_collapse_spreads_the_features(backend, device, on):
    """There are no proxies: a class has several centers, and row c of them is not of class c."""
    problem = Problem(40, 9, 3, 8, torch.float64, 21, device)
    base = losses.SoftTripleLoss(9, 8, centers_per_class=3).double().to(device)
    loss = losses.AntiCollapseLoss(base, on=on, weight=0.1)
    assert loss.on == "features"
    expected = base(problem.embeddings, problem.labels) + 0.1 * F.anti_collapse_loss(problem.embeddings)
    torch.testing.assert_close(loss(problem.embeddings, problem.labels), expected)
    assert {"probability", "base_loss", "rate"} <= set(loss.last_stats)


@pytest.mark.parametrize("on", ["batch_proxies", "all_proxies"])
def test_anti_collapse_finds_no_proxies(on):
    with pytest.raises(ValueError, match="on must be 'features' for a base loss without proxies"):
        losses.AntiCollapseLoss(losses.SoftTripleLoss(9, 8), on=on)


def test_module_refuses_pairs(backend, device):
    problem = Problem(12, 5, 10, 6, device=device)
    module = losses.SoftTripleLoss(5, 6).to(device)
    x, y = problem.embeddings, problem.labels
    words = "must be None, since this loss is not one of pairs"
    for name, value in (("ref_emb", x), ("ref_labels", y), ("ids", y), ("ref_ids", y), ("indices_tuple", (y, y, y))):
        with pytest.raises(ValueError, match=f"SoftTripleLoss: {name} {words}, got"):
            module(x, y, **{name: value})
    assert repr(module) == (
        "SoftTripleLoss(num_classes=5, embedding_size=6, centers_per_class=10, la=20.0, gamma=0.1, margin=0.01, "
        "normalize=True)"
    )


def test_module_names_itself_in_errors():
    problem = Problem(12, 5, 10, 6)
    with pytest.raises(ValueError, match=r"SoftTripleLoss: labels must be in \[0, C\) with C=5, got 6"):
        losses.SoftTripleLoss(5, 6)(problem.embeddings, problem.labels + 2)
