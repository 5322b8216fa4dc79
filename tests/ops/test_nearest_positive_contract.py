"""nearest_positive and mine: opcheck, torch.compile, vmap, double backward, determinism, messages, direct calls."""

from __future__ import annotations

import pytest
import torch
from support import contract, settings
from support.contract import VIEWS, strided, thinned
from support.nearest_positive import CHOICES, distances, select
from support.operators import of_backward
from support.pairs import tensors

from dmlkernels import functional as F
from dmlkernels._contract import OPERATORS
from dmlkernels.testing import Pairs, make_pairs


def arguments(choice, pairs, ids=None, ref_ids=None, ignore_index=None, normalize=True):
    """Arguments of nearest_positive_fwd or mine_fwd by name."""
    values = (*pairs, ids, ref_ids, ignore_index, normalize, *(CHOICES[choice] or ()), "ieee", False)
    return OPERATORS[f"{operator_of(choice)}_fwd"].named(values)


def operator_of(choice):
    return "nearest_positive" if CHOICES[choice] is None else "mine"


def operators_of(kernel, choice):
    return tuple(getattr(kernel.operators, f"{operator_of(choice)}_{way}") for way in ("fwd", "bwd"))


# opcheck.


@pytest.mark.heavy
@pytest.mark.parametrize("extra", ["plain", "ids_and_ignore_index", "permuted"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
@pytest.mark.parametrize("choice", ["nearest", "hard_semihard"])
def test_opcheck(kernel, device, choice, n, extra):
    pairs = make_pairs("random", 9, n, 4, 3, device=device)
    more = {}
    if extra == "ids_and_ignore_index":
        more = {"ids": torch.arange(9, device=device), "ignore_index": 1}
        more |= {} if n is None else {"ref_ids": torch.arange(n, device=device)}
    elif extra == "permuted":
        pairs = Pairs(
            *(t if t is None else VIEWS["transposed"](t) if t.is_floating_point() else strided(t) for t in pairs)
        )
    fwd, bwd = operators_of(kernel, choice)
    forward = arguments(choice, pairs, **more)
    contract.check_operator(bwd, of_backward(f"{operator_of(choice)}_fwd", kernel, forward).values())
    for x in tensors(pairs):
        x.requires_grad_()
    contract.check_operator(fwd, forward.values())


# torch.compile.


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
@pytest.mark.parametrize("choice", ["nearest", "easy_hard", "hard_semihard"])
def test_compile(kernel, device, choice, n):
    pairs = make_pairs("random", 40, n, 6, device=device)
    contract.check_compiled(distances(choice, pairs), tensors(pairs))


@pytest.mark.full
@pytest.mark.heavy
@pytest.mark.parametrize("choice", ["nearest", "hard_semihard"])
def test_compile_with_inductor(kernel, device, choice):
    pairs = make_pairs("random", 40, 33, 6, device=device)
    contract.check_compiled(distances(choice, pairs), tensors(pairs), backend="inductor")


def test_compile_returns_the_named_tuple(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.mine, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (40, 7):
        got, expected = (f(pairs.embeddings[:m], pairs.labels[:m]) for f in (compiled, F.mine))
        assert got._fields == expected._fields
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# vmap, double backward, determinism.


@pytest.mark.parametrize("n", [None, 20], ids=["self", "reference"])
@pytest.mark.parametrize("choice", CHOICES)
def test_vmap(kernel, device, choice, n):
    problems = [make_pairs("random", 30, n, 5, 3, seed=s, device=device) for s in range(3)]
    rows = [torch.stack([p.embeddings for p in problems], 1)]
    rows += [] if n is None else [torch.stack([p.ref_emb for p in problems])]
    distance, index = torch.vmap(lambda *r: select(choice, problems[0], *r), in_dims=(1, 0)[: len(rows)])(*rows)
    for b, p in enumerate(problems):
        expected = select(choice, problems[0], *tensors(p))
        assert torch.equal(distance[b], expected[0])
        assert torch.equal(index[b], expected[1])


@pytest.mark.parametrize("choice", ["nearest", "easy_hard"])
def test_double_backward(kernel, device, choice):
    pairs = make_pairs("random", 20, d=5, classes=2, device=device)
    contract.check_no_double_backward(distances(choice, pairs), pairs.embeddings)


@pytest.mark.heavy
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest"))
def test_deterministic(kernel, device, choice, n, deterministic):
    pairs = make_pairs("duplicates", 300, n, 130, device=device)
    with settings.deterministic(deterministic):
        contract.check_deterministic(distances(choice, pairs), tensors(pairs))


# Messages.


@pytest.mark.parametrize("function", [F.nearest_positive, F.mine])
def test_messages(backend, device, function):
    x, y = torch.randn(12, 4, device=device), torch.arange(12, device=device) % 3
    g, h = torch.randn(5, 4, device=device), torch.arange(5, device=device) % 3
    op = function.__name__ + ": "
    gallery = {"ref_emb": g, "ref_labels": h}
    cases = [
        ({"embeddings": None}, op + "embeddings must be a (M, D) tensor, got NoneType"),
        ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (4,)"),
        ({"embeddings": x.int()}, op + "embeddings must be float64, float32, bfloat16 or float16, got torch.int32"),
        ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
        (
            {"labels": y.half()},
            op + "labels must be a (M,) tensor of integers (one class per row), got torch.float16",
        ),
        ({"ids": y[:3]}, op + "ids must be (M,) with M=12, got (3,)"),
        ({"ref_labels": h}, op + "ref_labels must be None without ref_emb, got a tensor"),
        ({"ref_ids": h}, op + "ref_ids must be None without ref_emb, got a tensor"),
        ({"ref_emb": g}, op + "ref_labels must be given with ref_emb, got None"),
        ({"ref_emb": g[:, :3], "ref_labels": h}, op + "ref_emb must be (N, D) with D=4, got (5, 3)"),
        ({"ref_emb": g, "ref_labels": h[:4]}, op + "ref_labels must be (N,) with N=5, got (4,)"),
        ({**gallery, "ids": y}, op + "ref_ids must be given together with the other one in reference mode, got None"),
        ({"ignore_index": "0"}, op + "ignore_index must be an int or None, got '0'"),
    ]
    if function is F.mine:
        cases += [
            ({"positive": "all"}, op + "positive must be 'easy' or 'hard', got 'all'"),
            ({"negative": "easy"}, op + "negative must be 'hard' or 'semihard', got 'easy'"),
        ]
    contract.check_messages(function, {"embeddings": x, "labels": y}, cases)
