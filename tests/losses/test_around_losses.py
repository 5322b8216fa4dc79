"""What goes around a loss, with every exported loss inside: a rate, an expansion, a memory, several heads."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.every_loss import PAIRS, PLAIN, PROXIES, make

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate, make_pairs

CLASSES, D = 6, 16
EXPANDED = [name for name in PLAIN if name != "MCR2Loss"]


def batch(device: str = "cpu", seed: int = 60):
    return make_pairs("random", 24, d=D, classes=CLASSES, dtype=torch.float64, seed=seed, device=device)


def gradients(loss: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, **given) -> tuple[torch.Tensor, list]:
    """Value, and gradients of the embeddings and of what the loss learns."""
    leaf = x.detach().clone().requires_grad_()
    torch.manual_seed(1)
    value = loss(leaf, y, **given)
    leaves = [leaf, *loss.parameters()]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)]


def assert_sum(got, parts) -> None:
    """Value and gradients are the weighted sums of those of the parts."""
    torch.testing.assert_close(got[0], sum(weight * value for weight, (value, _) in parts))
    for k, grad in enumerate(got[1]):
        torch.testing.assert_close(grad, sum(weight * grads[k] for weight, (_, grads) in parts))


def remembering(name: str, device: str) -> losses.CrossBatchMemory:
    """With one batch in the memory already."""
    memory = losses.CrossBatchMemory(make(name, CLASSES, D), D, 60)
    memory(*batch(device, seed=61)[:2])
    return memory.to(device)


def test_every_loss_is_known():
    assert {"RankedListLoss", "TripletMarginLoss"} <= set(PAIRS)
    assert {"ProxyAnchorLoss", "SoftTripleLoss"} <= set(PROXIES)
    assert set(PLAIN) == {*PAIRS, *PROXIES, "MCR2Loss"}


@pytest.mark.parametrize("name", contract.thinned(PLAIN, "RankedListLoss", "ProxyAnchorLoss"))
def test_anti_collapse(backend, device, name):
    """base_weight·base + weight·φ, of the features, and of proxies where there are any."""
    base = make(name, CLASSES, D).double().to(device)
    x, y = batch(device)[:2]
    plain = gradients(base, x, y)
    chosen = ["features"] + ["batch_proxies", "all_proxies"] * hasattr(base, "proxies")
    for on in chosen:
        loss = losses.AntiCollapseLoss(base, on, weight=0.1, base_weight=0.7)

        def rate(z, y, on=on):
            return -F.coding_rate(z if on == "features" else base.proxies)

        setattr(rate, "parameters", base.parameters)  # noqa: B010
        assert_sum(gradients(loss, x, y), [(0.7, plain), (0.1, gradients(rate, x, y))])
        assert set(loss.last_stats) == {*base.last_stats, "base_loss", "rate"}
    assert losses.AntiCollapseLoss(base).on == chosen[min(1, len(chosen) - 1)]


@pytest.mark.parametrize("name", contract.thinned(EXPANDED, "RankedListLoss", "SoftTripleLoss"))
def test_expansion(backend, device, name):
    """Synthetics are embeddings of what has proxies or centers, and the gallery of the batch otherwise."""
    base = make(name, CLASSES, D).double().to(device)
    x, y = batch(device)[:2]
    loss = losses.SphericalExpansionLoss(base, n=3, weight=0.3, max_fraction=0.5)
    torch.manual_seed(1)
    proxies = getattr(base, "proxies", None)
    centers = torch.stack([torch.nn.functional.normalize(x, dim=1)[y == c].mean(0) for c in range(CLASSES)])
    similarity = torch.nn.functional.cosine_similarity(x, (centers if proxies is None else proxies.detach())[y])
    index = similarity.argsort(descending=True, stable=True)[:12]
    more = F.spherical_expansion(x, y, proxies, n=3, index=index)
    if name in PROXIES:
        value, (_, *grads) = gradients(base, more.embeddings, more.labels)
        extra = value, [torch.zeros_like(x), *grads]
    else:
        extra = gradients(base, x, y, ref_emb=more.embeddings, ref_labels=more.labels)
    assert any(bool(grad.abs().max() > 0) for grad in extra[1])
    assert_sum(gradients(loss, x, y), [(1, gradients(base, x, y)), (0.3, extra)])
    assert set(loss.last_stats) == {*base.last_stats, "synthetic_loss", "expanded"}
    assert int(loss.last_stats["expanded"]) == 12


@pytest.mark.parametrize("name", contract.thinned(PAIRS, "RankedListLoss"))
def test_around_a_memory(backend, device, name):
    """The rate counts once, and synthetics are not remembered."""
    x, y = batch(device)[:2]
    expansion = losses.SphericalExpansionLoss(remembering(name, device), n=3, max_fraction=0.5)
    both = losses.AntiCollapseLoss(expansion, weight=0.1)
    memory, fresh = expansion.base_loss, remembering(name, device)
    got = gradients(both, x, y)
    assert int(memory.fill) == 48
    assert torch.equal(memory.embedding_memory[24:48], x)
    plain, synthetic = (
        gradients(fresh, x, y),
        losses.SphericalExpansionLoss(make(name, CLASSES, D), n=3, max_fraction=0.5),
    )
    of_batch = gradients(make(name, CLASSES, D), x, y)
    with_synthetics = gradients(synthetic, x, y)
    rate = losses.AntiCollapseLoss(Nothing(), weight=0.1)
    assert_sum(got, [(1, plain), (1, with_synthetics), (-1, of_batch), (1, gradients(rate, x, y))])
    assert {"filled", "synthetic_loss", "rate"} <= set(both.last_stats)


class Nothing(torch.nn.Module):
    def forward(self, embeddings, labels):
        return embeddings.new_zeros(())


@pytest.mark.parametrize("name", contract.thinned(PLAIN, "RankedListLoss"))
def test_heads_of_every_loss(backend, device, name):
    """The sum over heads; a loss of pairs is one for all of them, a loss with proxies has one for each."""
    widths, batches = (D, 8, 5), [batch(device, seed) for seed in (62, 63, 64)]
    heads = [pairs.embeddings[:, :width] for pairs, width in zip(batches, widths, strict=True)]
    y = batches[0].labels
    each = [make(name, CLASSES, width).double().to(device) for width in widths]
    for loss in [losses.MultiHead(each)] + ([] if name in PROXIES else [losses.MultiHead(each[0])]):
        weights = torch.ones((), device=device)
        together = evaluate(lambda *rows, loss=loss: loss(list(rows), y), heads, weights)
        parts = [gradients(own, x, y) for own, x in zip(each, heads, strict=True)]
        torch.testing.assert_close(together.value, torch.stack([value for value, _ in parts]).sum())
        for grad, (_, grads) in zip(together.grads, parts, strict=True):
            torch.testing.assert_close(grad, grads[0])
        assert set(loss.last_stats) == {f"head_{k}_{stat}" for k in range(3) for stat in each[0].last_stats}


def test_heads_take_galleries_ids_and_lists(backend, device):
    one, two = (make_pairs("random", 20, 30, D, CLASSES, torch.float64, seed, device=device) for seed in (65, 66))
    loss = losses.RankedListLoss(reduction="none")
    heads = losses.MultiHead(loss)
    ids, ref_ids = torch.arange(20, device=device), torch.arange(30, device=device)
    galleries = [one.ref_emb, two.ref_emb]
    got = heads((one.embeddings, two.embeddings), one.labels, None, galleries, one.ref_labels, ids=ids, ref_ids=ref_ids)
    expected = [
        loss(pairs.embeddings, one.labels, None, pairs.ref_emb, one.ref_labels, ids=ids, ref_ids=ref_ids)
        for pairs in (one, two)
    ]
    torch.testing.assert_close(got, expected[0] + expected[1])
    assert got.shape == (20,)
    listed = tuple(torch.tensor(column, device=device) for column in ((0, 1, 2), (3, 4, 5), (6, 7, 8)))
    got = heads([one.embeddings, two.embeddings], one.labels, listed)
    torch.testing.assert_close(got, sum(loss(pairs.embeddings, one.labels, listed) for pairs in (one, two)))


def test_heads_with_a_memory_each(backend, device):
    pairs = [batch(device, seed) for seed in (67, 68)]
    y = pairs[0].labels
    memories = [[remembering("RankedListLoss", device) for _ in range(2)] for _ in range(2)]
    loss = losses.MultiHead([losses.AntiCollapseLoss(memory) for memory in memories[0]])
    got = loss([p.embeddings for p in pairs], y)
    expected = [losses.AntiCollapseLoss(m)(p.embeddings, y) for m, p in zip(memories[1], pairs, strict=True)]
    torch.testing.assert_close(got, expected[0] + expected[1])
    state = loss.state_dict()
    assert int(state["heads.1.base_loss.fill"]) == 48
    assert torch.equal(state["heads.1.base_loss.embedding_memory"][24:48], pairs[1].embeddings)


@pytest.mark.heavy
def test_heads_compile(kernel, device):
    y = batch(device).labels
    loss = losses.MultiHead([losses.AntiCollapseLoss(losses.RankedListLoss()), losses.RankedListLoss()])
    tensors = [batch(device, seed).embeddings.float() for seed in (69, 70)]
    contract.check_compiled(lambda one, two: loss([one, two], y), tensors)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", ["RankedListLoss", *(pytest.param(n, marks=pytest.mark.full) for n in EXPANDED if n != "RankedListLoss")]
)
def test_everything_compiles(kernel, device, name):
    """Rate, expansion and, for a loss of pairs, a memory, in one graph."""
    x, y = (t.float() if t.is_floating_point() else t for t in batch(device)[:2])

    def built() -> torch.nn.Module:
        inside = make(name, CLASSES, D)
        inside = losses.CrossBatchMemory(inside, D, 40) if name in PAIRS else inside
        return losses.AntiCollapseLoss(losses.SphericalExpansionLoss(inside, n=3)).to(device)

    torch.compiler.reset()
    eager, inside = built(), built()
    compiled = torch.compile(lambda x, y: inside(x, y), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.manual_seed(2)
        got = compiled(x, y)
        torch.manual_seed(2)
        torch.testing.assert_close(got, eager(x, y))


def test_what_does_not_go_together_says_so():
    loss = losses.RankedListLoss()
    memory = losses.CrossBatchMemory(loss, D)
    for around, inside, words in (
        (
            losses.AntiCollapseLoss,
            losses.MultiHead(loss),
            "AntiCollapseLoss: base_loss must be a loss of one embedding",
        ),
        (losses.SphericalExpansionLoss, losses.MultiHead(loss), "base_loss must be a loss of pairs .*, got MultiHead"),
        (losses.SphericalExpansionLoss, losses.MCR2Loss(), "a loss of pairs .* or with proxies, got MCR2Loss"),
        (losses.SphericalExpansionLoss, losses.AntiCollapseLoss(memory), "got AntiCollapseLoss"),
        (
            losses.MultiHead,
            memory,
            "MultiHead: loss must be a sequence with a CrossBatchMemory for each head, got Cross",
        ),
        (losses.MultiHead, losses.AntiCollapseLoss(memory), "for each head, got AntiCollapseLoss"),
        (losses.MultiHead, [], "MultiHead: loss must be a loss, or a sequence of at least one, got none"),
    ):
        with pytest.raises(ValueError, match=words):
            around(inside)
    x, y = batch()[:2]
    for heads, arguments, words in (
        (loss, (x, y), "embeddings must be a list or tuple of one or more .* tensors, got Tensor"),
        (loss, ([], y), "embeddings must be a list or tuple of one or more .* tensors, got 0"),
        ([loss, loss], ([x], y), "embeddings must be a list or tuple of 2 .* tensors, got 1"),
        (loss, ([x, x], y, None, x, y), "ref_emb must be a list or tuple of 2 .* tensors, got Tensor"),
        (loss, ([x, x], y, None, [x], y), "ref_emb must be a list or tuple of 2 .* tensors, got 1"),
        (loss, ([x, x[0]], y), r"RankedListLoss: embeddings must be \(M, D\), got \(16,\)"),
    ):
        with pytest.raises(ValueError, match=words), dmlkernels.use_backend("reference"):
            losses.MultiHead(heads)(*arguments)
