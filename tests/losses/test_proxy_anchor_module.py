"""ProxyAnchorLoss: the function with proxies of its own."""

from __future__ import annotations

import pytest
import torch
from support.contract import assert_identical
from support.proxy_anchor import Problem

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate


@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "alpha": 8.0}, {"normalize": False, "alpha": 0.5}])
def test_module_is_the_function(backend, device, options):
    problem = Problem(40, 9, 8, seed=18, device=device)
    module = losses.ProxyAnchorLoss(9, 8, **options).to(device)

    def through_module(x, p):
        return torch.func.functional_call(module, {"proxies": p}, (x, problem.labels))

    got = evaluate(through_module, problem.tensors)
    assert_identical(got, evaluate(problem.function(**options), problem.tensors))
    assert [name for name, _ in module.named_parameters()] == ["proxies"]


def test_statistics(backend, device):
    problem = Problem(40, 9, 8, torch.float64, 19, device, missing=True)
    module = losses.ProxyAnchorLoss(9, 8).double().to(device)
    loss = module(problem.embeddings, problem.labels)
    stats = module.last_stats
    assert set(stats) == {"pos_term", "neg_term"}
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    torch.testing.assert_close(stats["pos_term"] + stats["neg_term"], loss.detach())
    s = F.pairwise_similarity(problem.embeddings, module.proxies)
    negative = [torch.log1p((32 * (s[problem.labels != c, c] + 0.1)).exp().sum()) for c in range(9)]
    torch.testing.assert_close(stats["neg_term"], torch.stack(negative).mean().detach())


def test_proxies_start_like_the_peer():
    """kaiming_normal_ with fan_out, on the same random numbers."""
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(0)
    ours = losses.ProxyAnchorLoss(30, 16)
    torch.manual_seed(0)
    assert torch.equal(ours.proxies, peer.ProxyAnchorLoss(30, 16).proxies)


@pytest.mark.large
def test_module_trains(backend, device):
    """A few steps bring embeddings to their proxies."""
    problem = Problem(60, 6, 8, seed=20, device=device)
    torch.manual_seed(1)
    module = losses.ProxyAnchorLoss(6, 8).to(device)
    x = problem.embeddings.requires_grad_()
    optimiser = torch.optim.Adam([x, *module.parameters()], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        module(x, problem.labels).backward()
        optimiser.step()
    s = F.pairwise_similarity(x, module.proxies)
    assert float((s.argmax(1) == problem.labels).float().mean()) == 1


def test_module_refuses_pairs(backend, device):
    problem = Problem(12, 5, 6, device=device)
    module = losses.ProxyAnchorLoss(5, 6).to(device)
    x, y = problem.embeddings, problem.labels
    words = "must be None, since this loss is not one of pairs"
    for name, value in (("ref_emb", x), ("ref_labels", y), ("ids", y), ("ref_ids", y), ("indices_tuple", (y, y, y))):
        with pytest.raises(ValueError, match=f"ProxyAnchorLoss: {name} {words}, got"):
            module(x, y, **{name: value})
    if backend.asynchronous:
        assert bool(module(x, y + 2).isnan())
    else:
        with pytest.raises(ValueError, match=r"ProxyAnchorLoss: labels must be in \[0, C\) with C=5, got 6"):
            module(x, y + 2)
    assert repr(module) == "ProxyAnchorLoss(num_classes=5, embedding_size=6, margin=0.1, alpha=32.0, normalize=True)"
