"""pair_loss: opcheck, torch.compile, vmap, double backward, determinism, views, direct calls."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.contract import VIEWS, strided, thinned
from support.pair_loss import OPTIONS, Case, call, case_of, differentiable, forward_arguments, has_moment
from support.pairs import tensors

from dmlkernels.testing import Pairs, evaluate, make_pairs

NAMES = ["softmax", "steep", "circle", "contrastive", "softplus_positives", "ranked", "ranked_steep", "ranked_query"]


def backward_arguments(operators, forward, need_grad_ref):
    """Arguments of pair_loss_bwd after pair_loss_fwd(*forward)."""
    stats, log_sums, *_, tile_active = operators.pair_loss_fwd(*forward)
    bounds, *options, _ = forward[8:]
    grads = (torch.linspace(-1, 1, stats.numel(), dtype=stats.dtype, device=stats.device).view_as(stats) for _ in "123")
    return (*grads, *forward[:8], stats, log_sums, tile_active, bounds, *options, need_grad_ref)


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
    contract.check_operator(
        kernel.operators.pair_loss_bwd, backward_arguments(kernel.operators, forward, n is not None)
    )
    leaves = (t.requires_grad_() if t is not None and t.is_floating_point() else t for t in pairs)
    contract.check_operator(kernel.operators.pair_loss_fwd, (*leaves, *forward[4:]))


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
    torch.use_deterministic_algorithms(deterministic)
    try:
        contract.check_deterministic(differentiable(case), tensors(case.pairs))
    finally:
        torch.use_deterministic_algorithms(True)


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


@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
def test_direct_calls_are_checked(kernel, device, n):
    """torch.ops skips the public function; the operator still has to hold its ground."""
    case = case_of("contrastive", 12, n, bounded=True, device=device)
    x, y = case.pairs.embeddings, case.pairs.labels
    fwd, bwd = kernel.operators.pair_loss_fwd, kernel.operators.pair_loss_bwd
    forward = forward_arguments(case)
    bad = {
        "vector": {"embeddings": x[0]},
        "integers": {"embeddings": x.long()},
        "short labels": {"labels": y[:11]},
        "int32 labels": {"labels": y.int()},
        "short ids": {"ids": y[:3], "ref_ids": None if n is None else case.pairs.ref_labels},
        "short bounds": {"bounds": case.bounds[:, :5]},
        "one bound a row": {"bounds": case.bounds[0]},
        "bounds of another dtype": {"bounds": case.bounds.double()},
        "unknown value": {"value": "cosine"},
        "unknown term": {"pos_term": "square"},
        "unknown ends": {"grad": "half"},
        "bounds of a moment": {"neg_term": "moment"},
    }
    if n is None:
        bad["ref_labels alone"] = {"ref_labels": y}
    else:
        g, h = case.pairs.ref_emb, case.pairs.ref_labels
        bad |= {
            "no ref_labels": {"ref_labels": None},
            "other width": {"ref_emb": g[:, :3].contiguous()},
            "other dtype": {"ref_emb": g.double()},
            "short ref_labels": {"ref_labels": h[:4]},
        }
    names = [a.name for a in fwd.default._schema.arguments]
    contract.check_rejects(fwd, dict(zip(names, forward, strict=True)), bad)

    names = [a.name for a in bwd.default._schema.arguments]
    good = dict(zip(names, backward_arguments(kernel.operators, forward, n is not None), strict=True))
    grad, tiles = good["grad_stats"], good["tile_active"]
    bad |= {
        "short grad": {"grad_stats": grad[:, :5]},
        "grad of another dtype": {"grad_stats": grad.double()},
        "vector grad": {"grad_sums": grad[0]},
        "short stats": {"stats": good["stats"][:, :5]},
        "short log_sums": {"log_sums": good["log_sums"][:, :5]},
        "no tiles": {"tile_active": tiles[:0]},
        "tiles of another dtype": {"tile_active": tiles.long()},
    }
    if n is None:
        bad["gradient of no gallery"] = {"need_grad_ref": True}
    contract.check_rejects(bwd, good, bad)
