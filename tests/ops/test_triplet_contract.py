"""triplet: opcheck, torch.compile, vmap, double backward, determinism."""

from __future__ import annotations

import pytest
import torch
from support import contract, settings
from support.contract import VIEWS, strided, thinned
from support.operators import of_backward
from support.pairs import tensors
from support.triplet import OPTIONS, found, loss

from dmlkernels import functional as F
from dmlkernels import losses, use_backend
from dmlkernels._contract import OPERATORS
from dmlkernels.testing import Pairs, make_pairs


def arguments(pairs, ids=None, ref_ids=None, ignore_index=None, normalize=True, negative="all", margin=0.3, soft=False):
    """Arguments of triplet_fwd by name."""
    return OPERATORS["triplet_fwd"].named(
        (*pairs, ids, ref_ids, ignore_index, normalize, negative, margin, soft, "ieee", True, False)
    )


@pytest.mark.heavy
@pytest.mark.parametrize("extra", ["plain", "ids_and_ignore_index", "permuted"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_opcheck(kernel, device, negative, n, extra):
    pairs = make_pairs("random", 9, n, 4, 3, device=device)
    more = {}
    if extra == "ids_and_ignore_index":
        more = {"ids": torch.arange(9, device=device), "ignore_index": 1}
        more |= {} if n is None else {"ref_ids": torch.arange(n, device=device)}
    elif extra == "permuted":
        pairs = Pairs(
            *(t if t is None else VIEWS["transposed"](t) if t.is_floating_point() else strided(t) for t in pairs)
        )
    forward = arguments(pairs, **more, negative=negative)
    backward = of_backward("triplet_fwd", kernel, forward)
    contract.check_operator(kernel.operators.triplet_bwd, backward.values())
    for x in tensors(pairs):
        x.requires_grad_()
    contract.check_operator(kernel.operators.triplet_fwd, forward.values())


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_compile(kernel, device, negative, n):
    pairs = make_pairs("random", 40, n, 6, device=device)
    contract.check_compiled(loss(pairs, negative=negative), tensors(pairs))


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    pairs = make_pairs("random", 40, 33, 6, device=device)
    contract.check_compiled(loss(pairs), tensors(pairs), backend="inductor")


@pytest.mark.heavy
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_compile_the_module(kernel, device, negative):
    pairs = make_pairs("random", 40, d=6, device=device)
    module = losses.TripletMarginLoss(negative=negative)
    contract.check_compiled(lambda x: module(x, pairs.labels), [pairs.embeddings])


@pytest.mark.heavy
def test_compile_takes_other_sizes(kernel, device):
    torch.compiler.reset()
    function = F.triplet_loss
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (130, 20, 57):
        x, y = make_pairs("random", m, d=6, device=device)[:2]
        got, expected = (f(x, y, positive="all", negative="all") for f in (compiled, function))
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("n", [None, 20], ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_vmap(kernel, device, negative, n):
    problems = [make_pairs("random", 30, n, 5, 3, seed=s, device=device) for s in range(3)]
    rows = [torch.stack([p.embeddings for p in problems], 1)]
    rows += [] if n is None else [torch.stack([p.ref_emb for p in problems])]
    of_rows = loss(problems[0], negative=negative)
    got = torch.vmap(of_rows, in_dims=(1, 0)[: len(rows)])(*rows)
    for b, p in enumerate(problems):
        assert torch.equal(got[b], of_rows(*tensors(p)))


@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_double_backward(kernel, device, negative):
    pairs = make_pairs("random", 20, d=5, classes=4, device=device)
    contract.check_no_double_backward(loss(pairs, negative=negative), pairs.embeddings)


@pytest.mark.heavy
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 60], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(OPTIONS, "all", "semihard"))
def test_deterministic(kernel, device, name, n, deterministic):
    pairs = make_pairs("random", 140, n, 17, 20, device=device)
    with settings.deterministic(deterministic):
        contract.check_deterministic(loss(pairs, **OPTIONS[name]), tensors(pairs))


@pytest.mark.heavy
def test_gradcheck(backend, device):
    pairs = make_pairs("random", 9, 8, 4, 3, torch.float64, seed=7, device=device)
    for name in ("all", "all_soft", "semihard_soft"):
        leaves = [t.detach().requires_grad_() for t in tensors(pairs)]
        assert torch.autograd.gradcheck(loss(pairs, **OPTIONS[name]), leaves)


@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_swap_is_the_references(kernel, device, negative):
    pairs = make_pairs("random", 12, d=4, device=device)
    options = {"positive": "all", "negative": negative, "swap": True}
    with pytest.raises(ValueError, match="triplet_loss: swap must be False for positive='all' with negative="):
        F.triplet_loss(*pairs[:2], **options)
    with use_backend("reference"):
        assert bool(F.triplet_loss(*pairs[:2], **options) > 0)


def test_counts_are_not_differentiable(kernel, device):
    pairs = make_pairs("random", 12, d=4, device=device)
    rows = found(pairs, pairs.embeddings.requires_grad_())
    assert rows.loss_sum.requires_grad
    assert not rows.nonzero.requires_grad
    assert rows.nonzero.dtype == rows.count.dtype == torch.int64
