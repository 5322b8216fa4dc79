"""soft_triple: opcheck, torch.compile, vmap, double backward, determinism and messages."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.contract import VIEWS, assert_close, assert_identical, strided
from support.soft_triple import Problem
from torch._subclasses.fake_tensor import FakeTensorMode

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import evaluate

OPTIONS = (3, 8.0, 0.1, 0.05, True, "ieee")  # of the operator, from centers_per_class on

# opcheck, torch.compile, vmap, double backward, determinism.


def forward_arguments(problem):
    return (problem.embeddings, problem.labels, problem.centers, *OPTIONS)


@pytest.mark.heavy
@pytest.mark.parametrize("view", ["plain", "transposed"])
def test_opcheck(kernel, device, view):
    problem = Problem(9, 4, 3, 5, device=device)
    if view == "transposed":
        problem.embeddings, problem.centers = (VIEWS[view](t) for t in problem.tensors)
        problem.labels = strided(problem.labels)
    value, stats = kernel.operators.soft_triple_fwd(*forward_arguments(problem))
    backward = (torch.ones_like(value), problem.embeddings, problem.labels, problem.centers, stats, *OPTIONS)
    contract.check_operator(kernel.operators.soft_triple_bwd, backward)
    for t in problem.tensors:
        t.requires_grad_()
    contract.check_operator(kernel.operators.soft_triple_fwd, forward_arguments(problem))


@pytest.mark.heavy
def test_compile(kernel, device):
    problem = Problem(40, 9, 3, 8, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.soft_triple_loss, fullgraph=True, backend="aot_eager")
    for labels in (problem.labels, problem.labels.flip(0)):
        problem.labels = labels
        got = evaluate(lambda x, w: compiled(x, problem.labels, w, centers_per_class=3), problem.tensors)
        assert_identical(got, evaluate(problem.function(), problem.tensors))
    if kernel.asynchronous:
        assert bool(compiled(problem.embeddings, problem.labels + 1, problem.centers, centers_per_class=3).isnan())
    else:
        with pytest.raises(ValueError, match=r"^soft_triple_loss: labels must be in \[0, C\) with C=9, got 9$"):
            compiled(problem.embeddings, problem.labels + 1, problem.centers, centers_per_class=3)


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    problem = Problem(40, 9, 3, 8, device=device)
    torch.compiler.reset()
    compiled = torch.compile(problem.function(), fullgraph=True)
    assert_close(evaluate(compiled, problem.tensors), evaluate(problem.function(), problem.tensors))


def test_vmap(kernel, device):
    problems = [Problem(30, 9, 3, 8, seed=s, device=device) for s in range(3)]
    run = kernel.operators.soft_triple_fwd
    x, w = (torch.stack([q.tensors[k] for q in problems]) for k in (0, 1))
    y = torch.stack([q.labels for q in problems])
    got = torch.vmap(lambda x, y, w: run(x, y, w, *OPTIONS)[0])(x, y, w)
    assert torch.equal(got, torch.stack([run(*forward_arguments(q))[0] for q in problems]))


def test_double_backward(kernel, device):
    problem = Problem(20, 6, 3, 8, device=device)
    contract.check_no_double_backward(lambda x: problem.function()(x, problem.centers), problem.embeddings)
    contract.check_no_double_backward(lambda w: problem.function()(problem.embeddings, w), problem.centers)


@pytest.mark.heavy
@pytest.mark.parametrize("m, c, k", [(300, 5, 10), (40, 50, 6), (300, 290, 1)])
def test_deterministic(kernel, device, m, c, k):
    problem = Problem(m, c, k, 17, device=device)
    contract.check_deterministic(problem.function(), problem.tensors)


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    problem = Problem(140, 30, 3, 8, device=device)
    leaf = problem.embeddings.clone().requires_grad_()
    value = problem.function()(leaf, problem.centers)
    with dmlkernels.use_backend("reference"):
        value.backward()
    again = evaluate(problem.function(), problem.tensors, torch.ones((), device=device))
    assert torch.equal(leaf.grad, again.grads[0])


def test_losses_of_the_rows(kernel, device):
    """What the operator gives is each row's loss, and what its gradient needs of the row."""
    problem = Problem(140, 30, 3, 8, torch.float64, 1, device)
    run = kernel.operators.soft_triple_fwd
    losses, stats = run(*forward_arguments(problem))
    assert losses.shape == (140,)
    assert stats.shape == (2, 140)
    for i in (0, 77, 139):
        one, own = run(problem.embeddings[i : i + 1], problem.labels[i : i + 1], problem.centers, *OPTIONS)
        torch.testing.assert_close(one[0], losses[i])
        torch.testing.assert_close(own[:, 0], stats[:, i])
    torch.testing.assert_close(stats[1], 1 - (-losses).exp())


# Messages.


def test_messages(backend, device):
    problem = Problem(12, 5, 3, 6, device=device)
    x, y, w = problem.embeddings, problem.labels, problem.centers
    op = "soft_triple_loss: "
    contract.check_messages(
        F.soft_triple_loss,
        {"embeddings": x, "labels": y, "centers": w, "centers_per_class": 3},
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
            ({"centers": w[0]}, op + "centers must be (C*K, D), got (6,)"),
            ({"centers": w[:, :5]}, op + "centers must be (C*K, D) with D=6, got (15, 5)"),
            ({"centers": w[:14]}, op + "centers must be (C*K, D) with K=3, got (14, 6)"),
            ({"centers_per_class": 0}, op + "centers_per_class must be a positive int, got 0"),
            ({"centers_per_class": 3.0}, op + "centers_per_class must be a positive int, got 3.0"),
            ({"la": float("nan")}, op + "la must be a finite number, got nan"),
            ({"margin": None}, op + "margin must be a finite number, got None"),
            ({"gamma": 0.0}, op + "gamma must be a positive number, got 0.0"),
            ({"gamma": -1.0}, op + "gamma must be a positive number, got -1.0"),
        ],
    )


def test_labels_outside(backend, device):
    """The operator's own error on a CPU, in the words of the function; NaN where nobody waits for the kernel."""
    problem = Problem(12, 5, 3, 6, device=device)
    y, w = problem.labels, problem.centers
    good = {"embeddings": problem.embeddings, "labels": y, "centers": w, "centers_per_class": 3}
    op = "soft_triple_loss: labels must be in [0, C) with "
    contract.check_messages(F.soft_triple_loss, good, [({"centers": w[:0]}, op + "C=0, got 12 labels")])
    if backend.asynchronous:
        assert all(bool(F.soft_triple_loss(**good | {"labels": labels}).isnan()) for labels in (y + 1, y - 1))
        return
    outside = [({"labels": y + 1}, op + "C=5, got 5"), ({"labels": y - 1}, op + "C=5, got -1")]
    contract.check_messages(F.soft_triple_loss, good, outside)


@pytest.mark.parametrize("name", ["native", "reference"])
def test_fake_tensors(name):
    """Nothing in Python reads the labels where there are none to read."""
    with FakeTensorMode(), dmlkernels.use_backend(name):
        x, w = torch.randn(12, 6, requires_grad=True), torch.randn(15, 6, requires_grad=True)
        F.soft_triple_loss(x, torch.arange(12) % 5, w, centers_per_class=3).backward()
        assert (x.grad.shape, w.grad.shape) == ((12, 6), (15, 6))


def test_more_centers_than_a_tile_has(kernel, device):
    """The reference takes them; the kernels say so."""
    problem = Problem(12, 3, 129, 6, device=device)
    words = r"centers_per_class must be at most 128 \(the reference backend takes more\), got 129"
    with pytest.raises(ValueError, match=words):
        problem.function()(*problem.tensors)
    with dmlkernels.use_backend("reference"):
        assert bool(problem.function()(*problem.tensors).isfinite())
