"""proxy_anchor: empty and zero inputs, strides, dtypes and numbers that are not finite."""

from __future__ import annotations

import pytest
import torch
from support.contract import VIEWS, assert_identical, strided
from support.proxy_anchor import Problem

from dmlkernels.testing import evaluate


@pytest.mark.parametrize("m, c", [(0, 5), (0, 0)])
def test_no_embeddings(backend, device, m, c):
    problem = Problem(m, c, 8, device=device)
    outcome = evaluate(problem.function(), problem.tensors)
    assert float(outcome.value) == 0
    for grad, rows in zip(outcome.grads, problem.tensors, strict=True):
        assert torch.equal(grad, torch.zeros_like(rows))


@pytest.mark.parametrize("where", [0, 1])
def test_zero_rows_get_no_gradient(backend, device, where):
    problem = Problem(40, 9, 8, seed=13, device=device)
    problem.tensors[where][3] = 0
    outcome = evaluate(problem.function(), problem.tensors)
    grad = outcome.grads[where]
    assert torch.equal(grad[3], torch.zeros_like(grad[3]))
    assert bool(outcome.value.isfinite())
    assert bool((grad != 0).any(1).sum() == len(grad) - 1)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_gradient_of_one_side(backend, device, wanted):
    problem = Problem(140, 30, 8, seed=14, device=device)
    both = evaluate(problem.function(), problem.tensors, torch.ones((), device=device))
    leaves = [t.clone().requires_grad_(w) for t, w in zip(problem.tensors, wanted, strict=True)]
    value = problem.function()(*leaves)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.backward()
    for leaf, expected, w in zip(leaves, both.grads, wanted, strict=True):
        assert (leaf.grad is None) if not w else torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("side", [0, 1])
def test_strided_inputs(kernel, device, dtype, view, side):
    problem = Problem(140, 30, 9, dtype, 15, device)
    plain = evaluate(problem.function(), problem.tensors)
    problem.labels = strided(problem.labels)

    def through_view(*tensors):
        return problem.function()(*(VIEWS[view](t) if k == side else t for k, t in enumerate(tensors)))

    assert_identical(evaluate(through_view, problem.tensors), plain)


@pytest.mark.parametrize("x_dtype, p_dtype", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_promoted(backend, device, x_dtype, p_dtype):
    problem = Problem(40, 9, 8, p_dtype, 16, device)
    problem.embeddings = problem.embeddings.to(x_dtype)
    mixed = evaluate(problem.function(), problem.tensors)
    plain = evaluate(problem.function(), [problem.embeddings.to(p_dtype), problem.proxies])
    assert [g.dtype for g in mixed.grads] == [x_dtype, p_dtype]
    assert torch.equal(mixed.value, plain.value)
    assert torch.equal(mixed.grads[0], plain.grads[0].to(x_dtype))
    assert torch.equal(mixed.grads[1], plain.grads[1])


def test_result_dtype(backend, device, dtype):
    problem = Problem(40, 9, 8, dtype, device=device)
    value = problem.function()(*problem.tensors)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(problem.function()(*problem.tensors), value)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_non_finite_rows(backend, device, where, bad, normalize):
    problem = Problem(140, 30, 8, seed=17, device=device)
    problem.tensors[where][29, 3] = bad
    assert bool(problem.function(normalize=normalize)(*problem.tensors).isnan())


@pytest.mark.parametrize("where", [0, 1])
def test_overflowing_norms(backend, device, where):
    """Finite numbers whose squares are not: the row would count as zero."""
    problem = Problem(140, 30, 8, seed=17, device=device)
    problem.tensors[where][29] = 1e30
    assert bool(problem.function()(*problem.tensors).isnan())


def test_inputs_are_left_alone(backend, device):
    problem = Problem(140, 30, 8, device=device)
    before = [t.clone() for t in (*problem.tensors, problem.labels)]
    evaluate(problem.function(), problem.tensors)
    for t, b in zip((*problem.tensors, problem.labels), before, strict=True):
        assert torch.equal(t, b)
