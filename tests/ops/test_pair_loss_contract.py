"""pair_loss: opcheck, torch.compile, vmap, double backward, determinism, views."""

from __future__ import annotations

import pytest
import torch
from support import contract, settings
from support.contract import VIEWS, strided, thinned
from support.operators import of_backward
from support.pair_loss import OPTIONS, Case, call, case_of, differentiable, forward_arguments, has_moment
from support.pairs import tensors

from dmlkernels.testing import Pairs, evaluate, make_pairs

NAMES = ["softmax", "steep", "circle", "contrastive", "softplus_positives", "ranked", "ranked_steep", "ranked_query"]


@pytest.mark.heavy
@pytest.mark.parametrize("extra", ["plain", "ids_and_ignore_index", "permuted"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["softmax", "contrastive"])
def test_opcheck(kernel, device, name, n, extra):
    case = case_of(name, 9, n, bounded=extra == "plain", device=device)
    pairs, more = case.pairs, {}
    if extra == "ids_and_ignore_index":
        more = {"ids": torch.arange(9, device=device), "ignore_index": 1}
        more |= {} if n is None else {"ref_ids": torch.arange(n, device=device)}
    elif extra == "permuted":
        pairs = Pairs(
            *(t if t is None else VIEWS["transposed"](t) if t.is_floating_point() else strided(t) for t in pairs)
        )
    forward = forward_arguments(case, pairs, **more)
    backward = of_backward("pair_loss_fwd", kernel, forward)
    contract.check_operator(kernel.operators.pair_loss_bwd, backward.values())
    for x in tensors(pairs):
        x.requires_grad_()
    contract.check_operator(kernel.operators.pair_loss_fwd, forward.values())


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(NAMES, "softmax", "contrastive"))
def test_compile(kernel, device, name, n):
    case = case_of(name, 40, n, 6, bounded=n is not None and not has_moment(OPTIONS[name]), device=device)
    contract.check_compiled(differentiable(case), tensors(case.pairs))


def test_vmap(kernel, device):
    problems = [make_pairs("random", 30, None, 5, 3, seed=s, device=device) for s in range(3)]
    case = Case(problems[0], OPTIONS["softmax"], None, {})
    got = torch.vmap(differentiable(case))(torch.stack([p.embeddings for p in problems]))
    for b, p in enumerate(problems):
        assert torch.equal(got[b], differentiable(case)(p.embeddings))


@pytest.mark.parametrize("name", ["softmax", "contrastive"])
def test_double_backward(kernel, device, name):
    case = case_of(name, 20, None, 5, device=device)
    contract.check_no_double_backward(differentiable(case), case.pairs.embeddings)


@pytest.mark.heavy
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(NAMES, "softmax"))
def test_deterministic(kernel, device, name, n, deterministic):
    case = case_of(name, 300, n, 17, device=device)
    with settings.deterministic(deterministic):
        contract.check_deterministic(differentiable(case), tensors(case.pairs))


@pytest.mark.parametrize("view", thinned(VIEWS, "every_other_column"))
@pytest.mark.parametrize("name", ["softmax", "contrastive"])
def test_views(kernel, device, name, view):
    case = case_of(name, 40, 20, 8, bounded=True, device=device)
    plain = evaluate(differentiable(case), tensors(case.pairs))
    x, g = (VIEWS[view](t) for t in tensors(case.pairs))
    seen = case._replace(
        pairs=Pairs(x, strided(case.pairs.labels), g, strided(case.pairs.ref_labels)),
        bounds=torch.stack([case.bounds, case.bounds + 1], 2)[:, :, 0],
    )
    assert torch.equal(differentiable(seen)(x, g), plain.value)


@pytest.mark.parametrize("wanted", ["embeddings", "ref_emb", "bounds"])
def test_gradient_of_one_argument(kernel, device, wanted):
    case = case_of("contrastive", 30, 20, 5, bounded=True, device=device)
    given = {"embeddings": case.pairs.embeddings, "ref_emb": case.pairs.ref_emb, "bounds": case.bounds}
    every = {name: t.clone().requires_grad_() for name, t in given.items()}
    one = {name: t.clone().requires_grad_(name == wanted) for name, t in given.items()}
    for leaves in (every, one):
        statistics = call(case, leaves["embeddings"], leaves["ref_emb"], leaves["bounds"])
        (statistics.pos.sum() + 2 * statistics.neg.sum()).backward()
    assert torch.equal(every[wanted].grad, one[wanted].grad)
    assert all(t.grad is None for name, t in one.items() if name != wanted)
