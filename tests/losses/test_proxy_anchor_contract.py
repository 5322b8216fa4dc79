"""Proxy-Anchor: torch.compile, double backward, determinism and messages."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.contract import assert_close, assert_identical
from support.proxy_anchor import Problem

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import evaluate

# torch.compile, double backward, determinism.


@pytest.mark.heavy
def test_compile(kernel, device):
    problem = Problem(40, 9, 8, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.proxy_anchor_loss, fullgraph=True, backend="aot_eager")
    for labels in (problem.labels, problem.labels.flip(0)):
        problem.labels = labels
        got = evaluate(lambda x, p: compiled(x, problem.labels, p), problem.tensors)
        assert_identical(got, evaluate(problem.function(), problem.tensors))
    if kernel.asynchronous:
        assert bool(compiled(problem.embeddings, problem.labels + 1, problem.proxies).isnan())
    else:
        with pytest.raises(ValueError, match=r"^pair_loss: ref_labels must be in \[0, C\) with C=9, got 9$"):
            compiled(problem.embeddings, problem.labels + 1, problem.proxies)


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    problem = Problem(40, 9, 8, device=device)
    torch.compiler.reset()
    compiled = torch.compile(problem.function(), fullgraph=True)
    assert_close(evaluate(compiled, problem.tensors), evaluate(problem.function(), problem.tensors))


def test_double_backward(kernel, device):
    problem = Problem(20, 6, 8, device=device)
    contract.check_no_double_backward(lambda x: problem.function()(x, problem.proxies), problem.embeddings)
    contract.check_no_double_backward(lambda p: problem.function()(problem.embeddings, p), problem.proxies)


@pytest.mark.heavy
@pytest.mark.parametrize("m, c", [(300, 40), (40, 300), (300, 290)])
def test_deterministic(kernel, device, m, c):
    problem = Problem(m, c, 17, device=device)
    contract.check_deterministic(problem.function(), problem.tensors)


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    problem = Problem(140, 30, 8, device=device)
    leaf = problem.embeddings.clone().requires_grad_()
    value = problem.function()(leaf, problem.proxies)
    with dmlkernels.use_backend("reference"):
        value.backward()
    again = evaluate(problem.function(), problem.tensors, torch.ones((), device=device))
    assert torch.equal(leaf.grad, again.grads[0])


# Messages.


def test_messages(backend, device):
    problem = Problem(12, 5, 6, device=device)
    x, y, p = problem.embeddings, problem.labels, problem.proxies
    op = "proxy_anchor_loss: "
    contract.check_messages(
        F.proxy_anchor_loss,
        {"embeddings": x, "labels": y, "proxies": p},
        [
            ({"embeddings": [[1.0]]}, op + "embeddings must be a (M, D) tensor, got list"),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (6,)"),
            (
                {"embeddings": x.long()},
                op + "embeddings must be float64, float32, bfloat16 or float16, got torch.int64",
            ),
            ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
            (
                {"labels": torch.nn.functional.one_hot(y, 5).float()},
                op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
            ),
            ({"proxies": p[:0]}, op + "labels must be in [0, C) with C=0, got 12 labels"),
            ({"proxies": p[0]}, op + "proxies must be (C, D), got (6,)"),
            ({"proxies": p[:, :5]}, op + "proxies must be (C, D) with D=6, got (5, 5)"),
        ],
    )


def test_labels_outside_the_classes(backend, device):
    problem = Problem(12, 5, 6, device=device)
    x, y, p = problem.embeddings, problem.labels, problem.proxies
    for labels, outside in ((y + 1, 5), (y - 1, -1)):
        contract.check_outside(F.proxy_anchor_loss, (x, labels, p), outside, 5, backend)
