"""ranked_list: opcheck, torch.compile, vmap, double backward, determinism, messages, direct calls, memory."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.contract import VIEWS, strided, thinned
from support.pairs import tensors
from support.ranked_list import OPTIONS, arguments, draw, loss

from dmlkernels import functional as F
from dmlkernels._backend import namespaces
from dmlkernels.testing import Pairs, make_pairs

NAMES = ["default", "weight_grad", "query", "easy", "pml_constant", "unnormalized"]


def options_of_operator(name):
    o = {k: v for k, v in OPTIONS[name].items() if k not in ("form", "neg_weight")}
    return {"alpha": 1 + o.get("margin", 0.4) / 2, **o}


def backward_arguments(operators, forward, need_grad_ref):
    """Arguments of ranked_list_bwd after ranked_list_fwd(*forward)."""
    value, row_stats, _, easy_index, tile_active = operators.ranked_list_fwd(*forward)
    *options, _ = forward[8:]
    grad = torch.linspace(-1, 1, len(value), dtype=value.dtype, device=value.device)
    return (grad, *forward[:8], row_stats, easy_index, tile_active, *options, need_grad_ref)


# opcheck.


@pytest.mark.parametrize("extra", ["plain", "ids_and_ignore_index", "permuted"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["default", "easy"])
def test_opcheck(kernel, device, name, n, extra):
    pairs = make_pairs("random", 9, n, 4, 3, device=device)
    more = {}
    if extra == "ids_and_ignore_index":
        more = {"ids": torch.arange(9, device=device), "ignore_index": 1}
        more |= {} if n is None else {"ref_ids": torch.arange(n, device=device)}
    elif extra == "permuted":
        pairs = Pairs(
            *(t if t is None else VIEWS["transposed"](t) if t.is_floating_point() else strided(t) for t in pairs)
        )
    forward = arguments(pairs, **more, **options_of_operator(name))
    contract.check_operator(
        kernel.operators.ranked_list_bwd, backward_arguments(kernel.operators, forward, n is not None)
    )
    leaves = Pairs(*(t.requires_grad_() if t is not None and t.is_floating_point() else t for t in pairs))
    contract.check_operator(kernel.operators.ranked_list_fwd, (*leaves, *forward[4:]))


def test_a_backend_is_a_namespace_with_the_same_schemas():
    schemas = {}
    for namespace in namespaces.values():
        operators = getattr(torch.ops, namespace)
        for op in ("ranked_list_fwd", "ranked_list_bwd"):
            schema = str(getattr(operators, op).default._schema).replace(f"{namespace}::", "")
            assert schemas.setdefault(op, schema) == schema


# torch.compile.


@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["default", "easy"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compile(kernel, device, name, n, reduction):
    pairs = draw("random", 40, n, 6, OPTIONS[name], device=device)
    contract.check_compiled(loss(pairs, **OPTIONS[name], reduction=reduction), tensors(pairs))


def test_compile_with_inductor(kernel, device):
    pairs = draw("random", 40, 33, 6, device=device)
    contract.check_compiled(loss(pairs, reduction="mean"), tensors(pairs), backend="inductor")


def test_compile_takes_other_sizes(kernel, device):
    torch.compiler.reset()
    compiled = torch.compile(F.ranked_list_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (130, 20, 257):
        pairs = make_pairs("random", m, d=6, device=device)
        torch.testing.assert_close(compiled(pairs.embeddings, pairs.labels), F.ranked_list_loss(*pairs[:2]))


# vmap, double backward, determinism.


@pytest.mark.parametrize("n", [None, 20], ids=["self", "reference"])
@pytest.mark.parametrize("shared_labels", [True, False])
def test_vmap(kernel, device, shared_labels, n):
    problems = [make_pairs("random", 30, n, 5, 3, seed=s, device=device) for s in range(3)]
    x = torch.stack([p.embeddings for p in problems], 1)
    y = problems[0].labels if shared_labels else torch.stack([p.labels for p in problems])
    args, dims = (x, y), (1, None if shared_labels else 0)
    if n is not None:
        args += (torch.stack([p.ref_emb for p in problems]), problems[0].ref_labels)
        dims += (0, None)

    def rows(*a):
        return F.ranked_list_loss(*a, reduction="none")

    got = torch.vmap(rows, in_dims=dims)(*args)
    for b, p in enumerate(problems):
        labels = problems[0].labels if shared_labels else p.labels
        assert torch.equal(got[b], rows(p.embeddings, labels, p.ref_emb, problems[0].ref_labels))


def test_double_backward(kernel, device):
    pairs = make_pairs("random", 20, d=5, device=device)
    contract.check_no_double_backward(loss(pairs), pairs.embeddings)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(NAMES, "weight_grad", "easy"))
def test_deterministic(kernel, device, name, n, deterministic):
    pairs = draw("random", 300, n, 17, OPTIONS[name], device=device)
    torch.use_deterministic_algorithms(deterministic)
    try:
        contract.check_deterministic(loss(pairs, **OPTIONS[name]), tensors(pairs))
    finally:
        torch.use_deterministic_algorithms(True)


# Messages.


def test_messages(backend, device):
    x, y = torch.randn(12, 4, device=device), torch.arange(12, device=device) % 3
    g, h = torch.randn(5, 4, device=device), torch.arange(5, device=device) % 3
    op = "ranked_list_loss: "
    gallery = {"ref_emb": g, "ref_labels": h}
    contract.check_messages(
        F.ranked_list_loss,
        {"embeddings": x, "labels": y},
        [
            ({"embeddings": [[1.0]]}, op + "embeddings must be a (M, D) tensor, got list"),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (4,)"),
            ({"embeddings": x[None]}, op + "embeddings must be (M, D), got (1, 12, 4)"),
            (
                {"embeddings": x.long()},
                op + "embeddings must be float64, float32, bfloat16 or float16, got torch.int64",
            ),
            ({"labels": list(range(12))}, op + "labels must be a (M,) integer tensor, got list"),
            ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
            ({"labels": y[:, None]}, op + "labels must be (M,) with M=12, got (12, 1)"),
            (
                {"labels": y.float()},
                op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
            ),
            ({"ids": y[:3]}, op + "ids must be (M,) with M=12, got (3,)"),
            ({"ids": y.double()}, op + "ids must be a (M,) tensor of integers (one class per row), got torch.float64"),
            ({"ref_labels": h}, op + "ref_labels must be None without ref_emb, got a tensor"),
            ({"ref_ids": h}, op + "ref_ids must be None without ref_emb, got a tensor"),
            ({"ref_emb": g}, op + "ref_labels must be given with ref_emb, got None"),
            ({"ref_emb": g[0], "ref_labels": h}, op + "ref_emb must be (N, D), got (4,)"),
            ({"ref_emb": g[:, :3], "ref_labels": h}, op + "ref_emb must be (N, D) with D=4, got (5, 3)"),
            ({"ref_emb": g, "ref_labels": h[:4]}, op + "ref_labels must be (N,) with N=5, got (4,)"),
            (
                {**gallery, "ids": y},
                op + "ref_ids must be given together with the other one in reference mode, got None",
            ),
            (
                {**gallery, "ref_ids": h},
                op + "ids must be given together with the other one in reference mode, got None",
            ),
            ({**gallery, "ids": y, "ref_ids": h[:2]}, op + "ref_ids must be (N,) with N=5, got (2,)"),
            ({"ignore_index": 0.5}, op + "ignore_index must be an int or None, got 0.5"),
            ({"ignore_index": True}, op + "ignore_index must be an int or None, got True"),
            ({"form": "iccv"}, op + "form must be 'tpami' or 'cvpr', got 'iccv'"),
            ({"grad": "both"}, op + "grad must be 'full' or 'query', got 'both'"),
            ({"positive": "hard"}, op + "positive must be 'all' or 'easy', got 'hard'"),
            ({"eps_mode": "yes"}, op + "eps_mode must be 'none' or 'pml', got 'yes'"),
            ({"reduction": "median"}, op + "reduction must be 'mean' or 'sum' or 'none', got 'median'"),
        ],
    )


@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
def test_direct_calls_are_checked(kernel, device, n):
    """torch.ops skips the public function; the operator still has to hold its ground."""
    pairs = make_pairs("random", 12, n, 4, 3, device=device)
    x, y = pairs.embeddings, pairs.labels
    forward = arguments(pairs, positive="easy")
    fwd, bwd = kernel.operators.ranked_list_fwd, kernel.operators.ranked_list_bwd
    names = [a.name for a in fwd.default._schema.arguments]
    good = dict(zip(names, forward, strict=True))
    bad = {
        "vector": {"embeddings": x[0]},
        "integers": {"embeddings": x.long()},
        "short labels": {"labels": y[:11]},
        "long labels": {"labels": torch.cat([y, y])},
        "int32 labels": {"labels": y.int()},
        "column labels": {"labels": y[:, None]},
        "short ids": {"ids": y[:3], "ref_ids": None if n is None else pairs.ref_labels},
        "int32 ids": {"ids": y.int(), "ref_ids": None if n is None else pairs.ref_labels},
        "unknown grad": {"grad": "both"},
        "unknown positive": {"positive": "hard"},
        "unknown eps_mode": {"eps_mode": "yes"},
    }
    if n is None:
        bad["ref_labels alone"] = {"ref_labels": y}
        bad["ref_ids alone"] = {"ref_ids": y}
        bad["ref_emb alone"] = {"ref_emb": x}
    else:
        g, h = pairs.ref_emb, pairs.ref_labels
        bad |= {
            "no ref_labels": {"ref_labels": None},
            "no ref_emb": {"ref_emb": None},
            "other width": {"ref_emb": g[:, :3].contiguous()},
            "other dtype": {"ref_emb": g.double()},
            "short ref_labels": {"ref_labels": h[:4]},
            "int32 ref_labels": {"ref_labels": h.int()},
            "ids alone": {"ids": y},
            "ref_ids alone": {"ref_ids": h},
        }
    contract.check_rejects(fwd, good, bad)

    names = [a.name for a in bwd.default._schema.arguments]
    good = dict(zip(names, backward_arguments(kernel.operators, forward, n is not None), strict=True))
    stats, easy, tiles = good["row_stats"], good["easy_index"], good["tile_active"]
    bad |= {
        "short grad": {"grad_loss": good["grad_loss"][:5]},
        "grad of another dtype": {"grad_loss": good["grad_loss"].double()},
        "scalar grad": {"grad_loss": good["grad_loss"].sum()},
        "short row_stats": {"row_stats": stats[:, :5]},
        "fewer row_stats": {"row_stats": stats[:2]},
        "row_stats of another dtype": {"row_stats": stats.double()},
        "short easy_index": {"easy_index": easy[:5]},
        "int32 easy_index": {"easy_index": easy.int()},
        "no tiles": {"tile_active": tiles[:0]},
        "tiles of another dtype": {"tile_active": tiles.long()},
    }
    if n is None:
        bad["gradient of no gallery"] = {"need_grad_ref": True}
    contract.check_rejects(bwd, good, bad)
