"""Ranked list loss: torch.compile, vmap, double backward, determinism, messages."""

from __future__ import annotations

import pytest
import torch
from support import contract, settings
from support.contract import thinned
from support.pairs import tensors
from support.ranked_list import OPTIONS, draw, loss

from dmlkernels import functional as F
from dmlkernels.testing import make_pairs

NAMES = ["default", "weight_grad", "query", "easy", "pml_constant", "unnormalized"]


# torch.compile.


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 33], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["default", "easy"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compile(kernel, device, name, n, reduction):
    pairs = draw("random", 40, n, 6, OPTIONS[name], device=device)
    contract.check_compiled(loss(pairs, **OPTIONS[name], reduction=reduction), tensors(pairs))


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    pairs = draw("random", 40, 33, 6, device=device)
    contract.check_compiled(loss(pairs, reduction="mean"), tensors(pairs), backend="inductor")


@pytest.mark.heavy
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


@pytest.mark.heavy
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(NAMES, "weight_grad", "easy"))
def test_deterministic(kernel, device, name, n, deterministic):
    pairs = draw("random", 300, n, 17, OPTIONS[name], device=device)
    with settings.deterministic(deterministic):
        contract.check_deterministic(loss(pairs, **OPTIONS[name]), tensors(pairs))


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
            ({"reduction": "median"}, op + "reduction must be 'mean' or 'sum' or 'none' or 'share', got 'median'"),
        ],
    )
