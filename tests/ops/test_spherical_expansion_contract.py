"""spherical_expansion's contract: arguments, operators, compilation and messages."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.contract import VIEWS, assert_close, assert_identical, strided
from support.spherical_expansion import Problem

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import Outcome, evaluate

# Arguments.


def test_index_chooses_rows(backend, device, dtype):
    problem = Problem(12, 16, 3, dtype, seed=17, device=device)
    whole = problem.expand()
    index = torch.tensor([7, 0, 11, 3], device=device)
    some = problem.expand(index=index, noise=problem.noise[index])
    expected = whole.embeddings.reshape(12, 3, 16)[index].reshape(12, 16)
    assert_close(Outcome(some.embeddings, []), Outcome(expected, []))
    assert torch.equal(some.labels, problem.labels[index].repeat_interleave(3))
    grad = evaluate(problem.function(index=index, noise=problem.noise[index]), [problem.z]).grads[0]
    assert (grad != 0).any(1).nonzero()[:, 0].tolist() == [0, 3, 7, 11]
    empty = problem.expand(index=index[:0], noise=problem.noise[:0])
    assert (empty.embeddings.shape, empty.labels.shape, empty.valid.shape) == ((0, 16), (0,), (0,))


def test_noise_is_drawn_from_the_generator(backend, device):
    problem = Problem(12, 16, 5, torch.float32, seed=18, device=device)
    one, two, other = (
        problem.expand(noise=None, generator=torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one.embeddings, two.embeddings)
    assert not torch.equal(one.embeddings, other.embeddings)
    noise = torch.randn(12, 4, 16, generator=torch.Generator(device).manual_seed(1), device=device)
    assert torch.equal(one.embeddings, problem.expand(noise=noise).embeddings)
    torch.manual_seed(3)
    first = problem.expand(noise=None)
    assert not torch.equal(first.embeddings, problem.expand(noise=None).embeddings)


def test_differentiable(backend, device):
    problem = Problem(12, 16, 3, seed=19, device=device)
    z, proxies = problem.z.requires_grad_(), problem.proxies.requires_grad_()
    noise = problem.noise.requires_grad_()
    assert not problem.expand(noise=noise).embeddings.requires_grad
    out, _, valid = problem.expand(noise=noise, differentiable=True)
    assert out.requires_grad
    assert not valid.requires_grad
    out.sum().backward()
    assert z.grad is not None
    assert proxies.grad is None
    assert noise.grad is None


@pytest.mark.parametrize("z_dtype, p_dtype", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_promoted(backend, device, z_dtype, p_dtype):
    problem = Problem(12, 16, 3, p_dtype, seed=20, device=device)
    problem.z = problem.z.to(z_dtype)
    mixed, plain = evaluate(problem.function(), [problem.z]), evaluate(problem.function(), [problem.z.to(p_dtype)])
    assert mixed.value.dtype == p_dtype
    assert mixed.grads[0].dtype == z_dtype
    assert torch.equal(mixed.value, plain.value)
    assert torch.equal(mixed.grads[0], plain.grads[0].to(z_dtype))


def test_result_dtype(backend, device, dtype):
    problem = Problem(12, 16, 3, dtype, seed=21, device=device)
    for proxies in (problem.proxies, None):
        out = F.spherical_expansion(problem.z, problem.labels, proxies, n=3, noise=problem.noise)
        assert out.embeddings.dtype == dtype
        with torch.autocast(device, dtype=torch.bfloat16):
            again = F.spherical_expansion(problem.z, problem.labels, proxies, n=3, noise=problem.noise)
        assert torch.equal(again.embeddings, out.embeddings)


@pytest.mark.parametrize("proxies", ["given", "means"])
def test_no_samples(backend, device, proxies):
    problem = Problem(0, 8, 3, device=device)
    given = problem.proxies if proxies == "given" else None
    out = F.spherical_expansion(problem.z, problem.labels, given, n=3)
    assert (out.embeddings.shape, out.labels.shape, out.valid.shape) == ((0, 8), (0,), (0,))


@pytest.mark.parametrize("view", VIEWS)
def test_strided_inputs(kernel, device, dtype, view):
    problem = Problem(30, 12, 3, dtype, seed=22, device=device)
    plain = evaluate(problem.function(), [problem.z])
    problem.labels, problem.proxies = strided(problem.labels), VIEWS[view](problem.proxies)
    problem.noise = VIEWS[view](problem.noise.reshape(60, 12)).reshape(30, 2, 12).transpose(1, 2).contiguous().mT
    through_view = problem.function()
    assert_identical(evaluate(lambda z: through_view(VIEWS[view](z)), [problem.z]), plain)


def test_expanded_incoming_gradient(backend, device):
    problem = Problem(12, 8, 3, seed=23, device=device)
    seed = torch.tensor(0.7, dtype=torch.float64, device=device)
    a = evaluate(problem.function(), [problem.z], seed.expand(36, 8))
    assert_identical(a, evaluate(problem.function(), [problem.z], seed.expand(36, 8).contiguous()))


def test_inputs_are_left_alone(backend, device):
    problem = Problem(12, 8, 3, seed=24, device=device)
    before = [t.clone() for t in (problem.z, problem.labels, problem.proxies, problem.noise)]
    evaluate(problem.function(), [problem.z])
    for t, b in zip((problem.z, problem.labels, problem.proxies, problem.noise), before, strict=True):
        assert torch.equal(t, b)


# opcheck, torch.compile, vmap, double backward, determinism.


@pytest.mark.heavy
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("view", ["plain", "transposed"])
def test_opcheck(kernel, device, n, view):
    problem = Problem(6, 5, n, torch.float32, device=device)
    own = problem.proxies[problem.labels]
    z = problem.z if view == "plain" else VIEWS[view](problem.z)
    grad = torch.randn(6 * n, 5, device=device)
    contract.check_operator(kernel.operators.spherical_expansion_bwd, (grad, z, own, problem.noise, n))
    contract.check_operator(
        kernel.operators.spherical_expansion_fwd, (z.clone().requires_grad_(), own, problem.noise, n)
    )


@pytest.mark.heavy
@pytest.mark.parametrize("proxies", ["given", "means"])
def test_compile(kernel, device, proxies):
    problem = Problem(12, 8, 3, torch.float32, device=device)
    problem.proxies = problem.proxies if proxies == "given" else None
    contract.check_compiled(problem.function(), [problem.z])


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    problem = Problem(12, 8, 3, torch.float32, device=device)
    contract.check_compiled(problem.function(), [problem.z], backend="inductor")


def test_compile_draws_noise(kernel, device):
    problem = Problem(12, 8, 3, torch.float32, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.spherical_expansion, fullgraph=True, backend="aot_eager")
    out = compiled(problem.z, problem.labels, problem.proxies, n=3)
    torch.testing.assert_close(out.embeddings.norm(dim=1), torch.ones(36, device=device))


def test_vmap(kernel, device):
    problems = [Problem(6, 8, 3, torch.float32, seed=s, device=device) for s in range(3)]
    run = kernel.operators.spherical_expansion_fwd
    rows = [torch.stack([t(p) for p in problems]) for t in (lambda p: p.z, lambda p: p.noise)]
    own = problems[0].proxies[problems[0].labels]
    out, valid = torch.vmap(run, in_dims=(0, None, 0, None))(rows[0], own, rows[1], 3)
    for b, p in enumerate(problems):
        expected = run(p.z, own, p.noise, 3)
        assert torch.equal(out[b], expected[0])
        assert torch.equal(valid[b], expected[1])


def test_double_backward(kernel, device):
    problem = Problem(6, 8, 3, device=device)
    contract.check_no_double_backward(lambda z: problem.function()(z).square(), problem.z)


@pytest.mark.heavy
@pytest.mark.parametrize("n", [1, 8])
def test_deterministic(kernel, device, n):
    problem = Problem(70, 24, n, torch.float32, device=device)
    contract.check_deterministic(problem.function(), [problem.z])


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    problem = Problem(20, 12, 4, torch.float32, device=device)
    leaf = problem.z.clone().requires_grad_()
    value = problem.function()(leaf).sum()
    with dmlkernels.use_backend("reference"):
        value.backward()
    again = evaluate(lambda z: problem.function()(z).sum(), [problem.z], torch.ones((), device=device))
    assert torch.equal(leaf.grad, again.grads[0])


# Messages.


def test_messages(backend, device):
    problem = Problem(12, 6, 3, torch.float32, device=device)
    z, y, p = problem.z, problem.labels, problem.proxies
    op = "spherical_expansion: "
    contract.check_messages(
        F.spherical_expansion,
        {"z": z, "labels": y, "proxies": p, "n": 3},
        [
            ({"z": [[1.0]]}, op + "z must be a (M, D) tensor, got list"),
            ({"z": z[0]}, op + "z must be (M, D), got (6,)"),
            ({"z": z.long()}, op + "z must be float64, float32, bfloat16 or float16, got torch.int64"),
            ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
            (
                {"labels": y.float()},
                op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
            ),
            ({"labels": y + 1}, op + "labels must be in [0, C) with C=5, got 5"),
            ({"labels": y - 1}, op + "labels must be in [0, C) with C=5, got -1"),
            ({"proxies": p[:0]}, op + "labels must be in [0, C) with C=0, got 12 labels"),
            ({"proxies": p[0]}, op + "proxies must be (C, D), got (6,)"),
            ({"proxies": p[:, :5]}, op + "proxies must be (C, D) with D=6, got (5, 5)"),
            ({"n": 0}, op + "n must be an integer of at least 1, got 0"),
            ({"n": 2.0}, op + "n must be an integer of at least 1, got 2.0"),
            ({"n": True}, op + "n must be an integer of at least 1, got True"),
            ({"n": 6}, op + "n must be at most D - 1 = 5, got 6"),
            ({"noise": torch.randn(12, 3, 6)}, op + "noise must be (M, n-1, D) = (12, 2, 6), got (12, 3, 6)"),
            ({"index": [1, 2]}, op + "index must be a (k,) tensor of row numbers, got [1, 2]"),
            ({"index": y[None]}, op + "index must be a (k,) tensor of row numbers, got torch.int64 (1, 12)"),
            ({"index": z[:, 0]}, op + "index must be a (k,) tensor of row numbers, got torch.float32 (12,)"),
            ({"index": torch.tensor([3, 12])}, op + "index must be in [0, M) with M=12, got 12"),
            ({"index": torch.tensor([-1, 2])}, op + "index must be in [0, M) with M=12, got -1"),
        ],
    )
    contract.check_messages(
        F.max_mahalanobis_centers,
        {"n": 2},
        [({"n": 0}, "max_mahalanobis_centers: n must be an integer of at least 1, got 0")],
    )
