"""SphericalExpansionLoss: what is expanded, and the loss of it around proxies and pairs."""

from __future__ import annotations

import math

import pytest
import torch
from support import contract
from support.spherical_expansion import Problem

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import make_pairs


def proxy_loss(classes=5, d=16, device="cpu", seed=0):
    torch.manual_seed(seed)
    return losses.ProxyAnchorLoss(classes, d).to(device)


@pytest.mark.parametrize(
    "epoch, total, expected",
    [(0, 60, 0.0), (30, 60, 0.2), (60, 60, 0.4), (90, 60, 0.4), (100, 1000, 0.2), (250, 1000, 0.4), (0.25, 1, None)],
)
def test_schedule(epoch, total, expected):
    """The authors' cosine: over the run, or over its first 200 epochs."""
    loss = losses.SphericalExpansionLoss(losses.RankedListLoss())
    assert loss.fraction == 0.4
    loss.set_epoch(epoch, total)
    formula = 0.4 - 0.4 * (math.cos(math.pi * min(min(epoch, 200) / min(total, 200), 1)) + 1) / 2
    assert loss.fraction == pytest.approx(formula if expected is None else expected)
    other = losses.SphericalExpansionLoss(losses.RankedListLoss(), min_fraction=0.1, max_fraction=0.1)
    other.set_epoch(epoch, total)
    assert other.fraction == pytest.approx(0.1)


@pytest.mark.parametrize("m, fraction, count", [(10, 0.25, 2), (10, 0.35, 4), (30, 0.25, 8), (7, 0.4, 3), (10, 0.0, 0)])
def test_how_many_are_expanded(backend, device, m, fraction, count):
    """Halves go to the even number, as in the authors' code."""
    problem = Problem(m, 16, 8, torch.float32, device=device)
    loss = losses.SphericalExpansionLoss(proxy_loss(device=device), min_fraction=fraction, max_fraction=fraction)
    loss(problem.z, problem.labels)
    assert int(loss.last_stats["expanded"]) == count


def test_the_nearest_to_their_proxies_are_expanded(backend, device):
    """The sum of two losses, the second of the synthetics of the top 40 % by z·p."""
    problem = Problem(30, 16, 4, torch.float64, seed=25, device=device)
    base = proxy_loss(device=device).double()
    loss = losses.SphericalExpansionLoss(base, n=4, weight=0.3)
    own = torch.nn.functional.normalize(base.proxies.detach(), dim=1)[problem.labels]
    similarity = (torch.nn.functional.normalize(problem.z, dim=1) * own).sum(1)
    index = similarity.topk(12).indices
    torch.manual_seed(4)
    got = loss(problem.z, problem.labels)
    stats = loss.last_stats
    torch.manual_seed(4)
    more = F.spherical_expansion(problem.z, problem.labels, base.proxies, n=4, index=index)
    extra = base(more.embeddings, more.labels)
    expected = base(problem.z, problem.labels) + 0.3 * extra
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(stats["synthetic_loss"], extra.detach())
    assert set(stats) == {"pos_term", "neg_term", "synthetic_loss", "expanded"}
    torch.testing.assert_close(stats["pos_term"], base.last_stats["pos_term"])
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    assert loss.proxies is base.proxies


@pytest.mark.parametrize("differentiable", [False, True])
def test_synthetics_train_the_proxies_only(backend, device, differentiable):
    problem = Problem(20, 16, 4, torch.float64, seed=26, device=device)
    base = proxy_loss(device=device).double()
    loss = losses.SphericalExpansionLoss(base, n=4, differentiable=differentiable)

    def grads(module):
        z = problem.z.clone().requires_grad_()
        torch.manual_seed(5)
        return torch.autograd.grad(module(z, problem.labels), [z, base.proxies])

    (plain_z, plain_p), (z, p) = grads(base), grads(loss)
    assert torch.equal(z, plain_z) != differentiable
    assert not torch.equal(p, plain_p)


@pytest.mark.parametrize("with_ids", [False, True])
def test_around_a_pair_loss(backend, device, with_ids):
    """The synthetics are the detached gallery of the batch; classes of one sample have none."""
    pairs = make_pairs("random", 30, d=16, classes=9, dtype=torch.float64, seed=27, device=device)
    labels = pairs.labels.clone()
    labels[:4] = torch.arange(100, 104, device=device)
    loss = losses.SphericalExpansionLoss(losses.RankedListLoss(), n=3, max_fraction=1.0)
    ids = torch.arange(30, device=device) // 2
    given = {"ids": ids} if with_ids else {}
    torch.manual_seed(6)
    value = loss(pairs.embeddings, labels, **given)
    alone = torch.tensor([bool((labels == y).sum() == 1) for y in labels], device=device)
    assert int(loss.last_stats["expanded"]) == int((~alone).sum())

    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[labels == y].mean(0) for y in labels])
    similarity = (rows * torch.nn.functional.normalize(means, dim=1)).sum(1).masked_fill(alone, -torch.inf)
    index = similarity.argsort(descending=True, stable=True)
    torch.manual_seed(6)
    more = F.spherical_expansion(pairs.embeddings, labels, n=3, index=index)
    keep = more.valid.repeat_interleave(3)
    more_ids = {"ids": ids, "ref_ids": ids[index].repeat_interleave(3)[keep]} if with_ids else {}
    extra = F.ranked_list_loss(pairs.embeddings, labels, more.embeddings[keep], more.labels[keep], **more_ids)
    expected = F.ranked_list_loss(pairs.embeddings, labels, **given) + 0.2 * extra
    torch.testing.assert_close(value, expected)


def test_ignore_index_of_the_base_loss(backend, device):
    """The base loss's own one is used; one of None is a label that no class has while the synthetics are its gallery,
    and None again afterwards: the caller's loss is not changed.
    """
    pairs = make_pairs("random", 12, d=16, classes=12, labels="distinct", device=device)
    for ignored in (None, 3):
        seen = []

        class Base(losses.RankedListLoss):
            def forward(self, *args, **options):
                seen.append(self.ignore_index)  # noqa: B023
                return super().forward(*args, **options)

        base = Base(ignore_index=ignored)
        loss = losses.SphericalExpansionLoss(base, max_fraction=1.0)
        assert base.ignore_index == ignored
        value = loss(*pairs[:2])
        torch.testing.assert_close(value, F.ranked_list_loss(*pairs[:2], ignore_index=ignored))
        assert int(loss.last_stats["expanded"]) == 0
        assert seen == [-(2**63) if ignored is None else ignored, ignored]
        assert base.ignore_index == ignored


def test_ignore_index_is_restored_when_the_base_loss_raises(backend, device):
    class Base(losses.RankedListLoss):
        def forward(self, *args, **options):
            raise RuntimeError("no")

    base = Base()
    pairs = make_pairs("random", 12, d=16, device=device)
    with pytest.raises(RuntimeError, match="no"):
        losses.SphericalExpansionLoss(base)(*pairs[:2])
    assert base.ignore_index is None


def test_nothing_expanded_is_the_base_loss(backend, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    base = proxy_loss(device=device)
    loss = losses.SphericalExpansionLoss(base)
    loss.set_epoch(0, 10)
    assert torch.equal(loss(problem.z, problem.labels), base(problem.z, problem.labels))
    assert float(loss.last_stats["synthetic_loss"]) == 0
    assert float(loss(problem.z[:0], problem.labels[:0]).detach()) == 0


def test_with_anti_collapse_around_it(backend, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    base = proxy_loss(device=device)
    loss = losses.AntiCollapseLoss(losses.SphericalExpansionLoss(base))
    assert loss.on == "batch_proxies"
    torch.manual_seed(7)
    value = loss(problem.z, problem.labels)
    torch.manual_seed(7)
    inner = losses.SphericalExpansionLoss(base)(problem.z, problem.labels)
    torch.testing.assert_close(value, inner - 1e-3 * F.coding_rate(base.proxies))
    assert {"rate", "synthetic_loss", "pos_term"} <= set(loss.last_stats)


def test_loss_compiles(kernel, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    for base in (proxy_loss(device=device), losses.RankedListLoss()):
        loss = losses.SphericalExpansionLoss(base)
        torch.compiler.reset()
        compiled = torch.compile(lambda z, y, loss=loss: loss(z, y), fullgraph=True, backend="aot_eager")
        torch.manual_seed(8)
        got = compiled(problem.z, problem.labels)
        torch.manual_seed(8)
        torch.testing.assert_close(got, loss(problem.z, problem.labels))


def test_loss_messages(backend, device):
    op = "SphericalExpansionLoss: "
    contract.check_messages(
        losses.SphericalExpansionLoss,
        {"base_loss": losses.RankedListLoss()},
        [
            (
                {"min_fraction": 0.5},
                op + "min_fraction, max_fraction must be 0 <= min <= max <= 1, got 0.5, 0.4",
            ),
            ({"max_fraction": 1.5}, op + "min_fraction, max_fraction must be 0 <= min <= max <= 1, got 0.0, 1.5"),
        ],
    )
    loss = losses.SphericalExpansionLoss(proxy_loss(device=device))
    with pytest.raises(ValueError, match="epoch, total must be >= 0 and > 0, got 3, 0"):
        loss.set_epoch(3, 0)
    problem = Problem(20, 16, 8, torch.float32, device=device)
    with pytest.raises(ValueError, match=r"labels must be in \[0, C\) with C=5, got 9"):
        loss(problem.z, problem.labels + 5)
    with pytest.raises(ValueError, match=r"spherical_expansion: n must be at most D - 1 = 5, got 8"):
        losses.SphericalExpansionLoss(proxy_loss(5, 6, device))(problem.z[:, :6], problem.labels)
