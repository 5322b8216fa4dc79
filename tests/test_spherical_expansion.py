"""spherical_expansion: centres, synthetics, their gradient, and the loss that is made with them."""

from __future__ import annotations

import math

import contract
import numpy as np
import pytest
import torch
from contract import VIEWS, assert_close, assert_identical, strided

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import INTEGER_DTYPES, assert_matches, evaluate, make_pairs

FLOATS = [torch.float64, torch.float32]
FLOAT_IDS = ["float64", "float32"]


class Problem:
    """Samples, labels, proxies of 5 classes, and the noise of their frames."""

    def __init__(self, m, d, n, dtype=torch.float64, seed=0, device="cpu", kind="random"):
        pairs = make_pairs(kind, m, d=d, classes=5, dtype=dtype, seed=seed, device=device)
        generator = torch.Generator().manual_seed(seed + 1)
        self.z, self.labels, self.n = pairs.embeddings, pairs.labels, n
        self.proxies = torch.randn(5, d, dtype=torch.float64, generator=generator).to(dtype).to(device)
        self.noise = torch.randn(m, n - 1, d, dtype=torch.float64, generator=generator).to(dtype).to(device)

    def expand(self, z=None, **options):
        options = {"n": self.n, "noise": self.noise, **options}
        return F.spherical_expansion(self.z if z is None else z, self.labels, self.proxies, **options)

    def function(self, **options):
        """The synthetics as a differentiable function of z."""
        return lambda z: self.expand(z, differentiable=True, **options).embeddings


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def frame_by_qr(p, v1, noise):
    """v_2 … v_n: Gram-Schmidt keeps the direction of each row, which fixes the signs that QR leaves open."""
    q, r = np.linalg.qr(np.stack([p, v1, *noise], 1))
    return (q * np.sign(np.diagonal(r))).T[2:]


def synthetics(z, p, q_rows, n):
    """z_1 … z_n (n, D) of one sample, with the directions q (n, D) held fixed."""
    z = unit(z)
    along = (z @ p) * p
    r = z - along
    return along - r / n + np.linalg.norm(r) * q_rows


def parts(problem, i):
    """p and q (n, D) of sample i."""
    z = unit(problem.z[i].cpu().double().numpy())
    p = unit(problem.proxies[problem.labels[i]].cpu().double().numpy())
    v1 = unit(z - (z @ p) * p)
    frame = frame_by_qr(p, v1, problem.noise[i].cpu().double().numpy())
    centers = F.max_mahalanobis_centers(problem.n).numpy()[1:]
    return p, centers[:, 1:] @ frame if problem.n > 1 else np.zeros((1, len(z)))


# The centres.


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 15, 16, 31, 64, 200])
def test_centers_are_a_regular_simplex(n):
    c = F.max_mahalanobis_centers(n)
    assert c.dtype == torch.float64
    assert c.shape == (n + 1, n)
    gram = torch.full((n + 1, n + 1), -1 / n, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(c @ c.T, gram, rtol=0, atol=1e-13)
    torch.testing.assert_close(c.sum(0), torch.zeros(n, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(c.triu(1), torch.zeros_like(c))
    assert torch.equal(c[0], torch.eye(n, dtype=torch.float64)[0])


def test_centers_by_recursion():
    """Pang et al.'s Algorithm 1, entry by entry."""
    n = 7
    vertices, mu = n + 1, np.zeros((n + 1, n))
    mu[0, 0] = 1
    for i in range(1, vertices):
        for j in range(min(i, n)):
            mu[i, j] = -(1 / (vertices - 1) + mu[i] @ mu[j]) / mu[j, j]
        if i < n:
            mu[i, i] = math.sqrt(1 - mu[i] @ mu[i])
    np.testing.assert_allclose(F.max_mahalanobis_centers(n), mu, atol=1e-14)


# Values and gradients against the formula.


@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("d", ["tight", 24, 65])
def test_against_the_formula(backend, device, d, n):
    problem = Problem(11, n + 1 if d == "tight" else d, n, seed=1, device=device)
    out, labels, valid = problem.expand()
    assert bool(valid.all())
    assert torch.equal(labels, problem.labels.repeat_interleave(n))
    for i in range(11):
        p, q = parts(problem, i)
        expected = synthetics(problem.z[i].cpu().numpy(), p, q, n)
        np.testing.assert_allclose(out[i * n : (i + 1) * n].cpu(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_gradient_by_differences(backend, device, n):
    """∂/∂z of Σ w·z_k with the frame held fixed."""
    problem = Problem(6, 9, n, seed=2, device=device)
    weights = torch.randn(6 * n, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    grad = evaluate(problem.function(), [problem.z], weights.to(device)).grads[0].cpu().numpy()
    step = 1e-6
    for i in range(6):
        p, q = parts(problem, i)
        z, w = problem.z[i].cpu().numpy(), weights[i * n : (i + 1) * n].numpy()
        for k in range(9):
            e = step * np.eye(9)[k]
            slope = (w * (synthetics(z + e, p, q, n) - synthetics(z - e, p, q, n))).sum() / (2 * step)
            assert grad[i, k] == pytest.approx(slope, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("d", [3, 8])
def test_gradcheck_without_a_frame(backend, device, d):
    """n = 1 mirrors z at its proxy: nothing is held fixed."""
    problem = Problem(7, d, 1, seed=4, device=device)
    assert torch.autograd.gradcheck(problem.function(), [problem.z.requires_grad_()])


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates", "large_norms"])
@pytest.mark.parametrize("n", [1, 2, 8])
def test_every_dtype(kernel, device, dtype, n, kind):
    problem = Problem(40, 24, n, dtype, seed=5, device=device, kind=kind)
    reference = _reference_in(problem)
    assert_matches(problem.function(), [problem.z], reference=reference, max_quiet=1.0)


def _reference_in(problem):
    """The problem in the dtype of the samples that it is called with."""

    def function(z):
        proxies, noise = problem.proxies.to(z.dtype), problem.noise.to(z.dtype)
        options = {"n": problem.n, "noise": noise, "differentiable": True}
        return F.spherical_expansion(z, problem.labels, proxies, **options).embeddings

    return function


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [2, 3, 4, 8, 9, 15, 17, 33, 64, 130, 512])
def test_widths(kernel, device, d, dtype):
    problem = Problem(20, d, min(8, d - 1), dtype, seed=6, device=device)
    assert_matches(problem.function(), [problem.z], reference=_reference_in(problem), max_quiet=1.0)


@pytest.mark.parametrize("m", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("n", [3, 16])
def test_samples(kernel, device, m, n):
    problem = Problem(m, 20, n, torch.float32, seed=7, device=device)
    assert_matches(problem.function(), [problem.z], reference=_reference_in(problem), max_quiet=1.0)


# Invariants.


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n, d", [(1, 2), (1, 64), (2, 3), (8, 9), (8, 64), (8, 512), (32, 33), (32, 128)])
def test_invariants(backend, device, n, d, dtype):
    problem = Problem(50, d, n, dtype, seed=8, device=device)
    out = problem.expand().embeddings.double().reshape(50, n, d)
    z = torch.nn.functional.normalize(problem.z.double(), dim=1)
    p = torch.nn.functional.normalize(problem.proxies.double(), dim=1)[problem.labels]
    eps = 16 * torch.finfo(dtype).eps * n**0.5
    close = {"rtol": 0, "atol": eps}
    torch.testing.assert_close(out.norm(dim=2), torch.ones(50, n, dtype=torch.float64, device=device), **close)
    similarity = (z * p).sum(1)
    torch.testing.assert_close((out * p[:, None]).sum(2), similarity[:, None].expand(50, n), **close)
    m = similarity[:, None] * p
    residuals = torch.cat([z[:, None], out], 1) - m[:, None]
    torch.testing.assert_close(residuals.sum(1), torch.zeros_like(m), rtol=0, atol=eps * n)
    simplex = torch.full((n + 1, n + 1), -1 / n, dtype=torch.float64, device=device).fill_diagonal_(1)
    expected = (1 - similarity.square())[:, None, None] * simplex
    torch.testing.assert_close(residuals @ residuals.mT, expected, rtol=0, atol=4 * eps)


@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_near_the_proxy(backend, device, distance, dtype):
    """The circle shrinks with ‖r‖; its errors stay those of unit rows."""
    problem = Problem(20, 16, 4, dtype, seed=9, device=device)
    own = torch.nn.functional.normalize(problem.proxies[problem.labels], dim=1)
    problem.z = own + distance * torch.nn.functional.normalize(problem.z, dim=1)
    out, _, valid = problem.expand()
    assert bool(valid.all())
    eps = 32 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.norm(dim=1), torch.ones_like(out[:, 0]), rtol=0, atol=eps)
    similarity = (torch.nn.functional.normalize(problem.z, dim=1) * own).sum(1)
    got = (out * own.repeat_interleave(4, 0)).sum(1)
    torch.testing.assert_close(got, similarity.repeat_interleave(4), rtol=0, atol=eps)
    assert float((out - own.repeat_interleave(4, 0)).norm(dim=1).max()) < 2 * distance + eps


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_only_directions_matter(backend, device, scale):
    problem = Problem(20, 16, 4, seed=10, device=device)
    once = evaluate(problem.function(), [problem.z])
    problem.proxies, problem.noise = problem.proxies * 3, problem.noise * 7
    again = evaluate(problem.function(), [problem.z * scale])
    again.grads = [again.grads[0] * scale]
    assert_close(again, once, factor=1024)


# Samples without a direction.


@pytest.mark.parametrize("n", [1, 4])
def test_a_sample_on_its_proxy(backend, device, dtype, n):
    """Its rows are copies of it, its flag is False, and the others are not touched."""
    problem = Problem(12, 16, n, dtype, seed=11, device=device)
    whole = problem.expand()
    for i, factor in ((0, 1.0), (5, 2.0), (11, -1.0)):
        problem.z[i] = factor * problem.proxies[problem.labels[i]]
    out, labels, valid = problem.expand()
    lost = torch.zeros(12, dtype=torch.bool, device=device)
    lost[[0, 5, 11]] = True
    assert torch.equal(valid, ~lost)
    assert torch.equal(labels, whole.labels)
    rows = lost.repeat_interleave(n)
    own = torch.nn.functional.normalize(problem.z.double(), dim=1).repeat_interleave(n, 0)
    close = {"rtol": 0, "atol": 2 * torch.finfo(dtype).eps}
    torch.testing.assert_close(out[rows].double(), own[rows], **close)
    assert torch.equal(out[~rows], whole.embeddings[~rows])
    grad = evaluate(problem.function(), [problem.z]).grads[0]
    assert bool(grad.isfinite().all())


def test_zero_rows(backend, device):
    """A sample without a direction of its own is a copy of itself; a zero proxy is orthogonal to everything."""
    problem = Problem(10, 12, 3, seed=12, device=device)
    problem.z[4] = 0
    out, _, valid = problem.expand()
    assert valid.tolist() == [i != 4 for i in range(10)]
    assert torch.equal(out[12:15], torch.zeros_like(out[12:15]))
    grad = evaluate(problem.function(), [problem.z]).grads[0]
    assert torch.equal(grad[4], torch.zeros_like(grad[4]))
    problem.z[4] = 1
    problem.proxies.zero_()
    out, _, valid = problem.expand()
    assert bool(valid.all())
    torch.testing.assert_close(out.norm(dim=1), torch.ones_like(out[:, 0]))


@pytest.mark.parametrize("where", ["z", "proxies", "noise"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_rows(backend, device, where, bad):
    """They reach the loss: the rows are NaN and valid."""
    problem = Problem(10, 12, 3, seed=13, device=device)
    problem.labels = torch.arange(10, device=device) % 5
    getattr(problem, where)[(3, *[0] * (getattr(problem, where).ndim - 1))] = bad
    out, _, valid = problem.expand()
    hit = {3, 8} if where == "proxies" else {3}
    assert bool(valid.all())
    rows = out.reshape(10, 3, 12)
    for i in range(10):
        assert bool(rows[i].isnan().any() if i in hit else rows[i].isfinite().all())


@pytest.mark.parametrize("where", ["z", "proxies"])
def test_overflowing_norms(backend, device, where):
    """Finite numbers whose squares are not: the row would count as zero, and as a sample on its proxy."""
    problem = Problem(10, 12, 3, torch.float32, seed=13, device=device)
    problem.labels = torch.arange(10, device=device) % 5
    getattr(problem, where)[3] = 1e30
    out, _, valid = problem.expand()
    assert bool(valid.all())
    assert bool(out.reshape(10, 36)[3].isnan().all())


# Class means in the place of proxies.


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_class_means(backend, device, label_dtype):
    classes = 2 if label_dtype == torch.bool else 9
    pairs = make_pairs("random", 40, d=12, classes=classes, dtype=torch.float64, seed=14, device=device)
    names = pairs.labels if label_dtype == torch.bool else pairs.labels * 13 - (50 if label_dtype.is_signed else 0)
    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[pairs.labels == c].mean(0) for c in range(classes)])
    noise = torch.randn(40, 2, 12, dtype=torch.float64).to(device)
    got = F.spherical_expansion(pairs.embeddings, names.to(label_dtype), n=3, noise=noise)
    expected = F.spherical_expansion(pairs.embeddings, pairs.labels, means, n=3, noise=noise)
    torch.testing.assert_close(got.embeddings, expected.embeddings)
    assert torch.equal(got.valid, expected.valid)
    assert torch.equal(got.labels, names.to(torch.int64).repeat_interleave(3))


@pytest.mark.parametrize("index", [None, [6, 0, 3]])
def test_classes_of_one_sample(backend, device, dtype, index):
    pairs = make_pairs("random", 8, d=12, dtype=dtype, seed=15, device=device)
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 3, -9], device=device)
    chosen = None if index is None else torch.tensor(index, device=device)
    out, _, valid = F.spherical_expansion(pairs.embeddings, labels, n=4, index=chosen)
    alone = [False, False, True, False, False, False, True, True]
    assert valid.tolist() == [not alone[i] for i in (index or range(8))]
    own = torch.nn.functional.normalize(pairs.embeddings.double(), dim=1)
    for place, i in enumerate(index or range(8)):
        copies = out[4 * place : 4 * place + 4].double()
        same = float((copies - own[i]).abs().max()) <= 2 * torch.finfo(dtype).eps
        assert same == alone[i]


def test_class_means_are_constants(backend, device):
    """The gradient is that of the samples against given proxies."""
    pairs = make_pairs("random", 20, d=10, classes=4, dtype=torch.float64, seed=16, device=device)
    noise = torch.randn(20, 2, 10, dtype=torch.float64).to(device)
    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[pairs.labels == c].mean(0) for c in range(4)])

    def expand(z, proxies=None):
        return F.spherical_expansion(z, pairs.labels, proxies, n=3, noise=noise, differentiable=True).embeddings

    got = evaluate(expand, [pairs.embeddings])
    assert_close(got, evaluate(lambda z: expand(z, means), [pairs.embeddings]), factor=1024)


# Arguments.


def test_index_chooses_rows(backend, device, dtype):
    problem = Problem(12, 16, 3, dtype, seed=17, device=device)
    whole = problem.expand()
    index = torch.tensor([7, 0, 11, 3], device=device)
    some = problem.expand(index=index, noise=problem.noise[index])
    assert torch.equal(some.embeddings, whole.embeddings.reshape(12, 3, 16)[index].reshape(12, 16))
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


@pytest.mark.parametrize("proxies", ["given", "means"])
def test_compile(kernel, device, proxies):
    problem = Problem(12, 8, 3, torch.float32, device=device)
    problem.proxies = problem.proxies if proxies == "given" else None
    contract.check_compiled(problem.function(), [problem.z])


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


def test_direct_calls_are_checked(kernel, device):
    problem = Problem(12, 6, 3, torch.float32, device=device)
    z, own, noise = problem.z, problem.proxies[problem.labels], problem.noise
    bad = {
        "vector": {"z": z[0]},
        "integers": {"z": z.long()},
        "fewer proxies": {"proxies": own[:11]},
        "narrow proxies": {"proxies": own[:, :5].contiguous()},
        "proxies of another dtype": {"proxies": own.double()},
        "no noise": {"noise": noise[:, :1]},
        "flat noise": {"noise": noise[:, 0]},
        "noise of another dtype": {"noise": noise.double()},
        "n of 0": {"n": 0},
        "n of D": {"n": 6, "noise": torch.randn(12, 5, 6, device=device)},
    }
    good = {"z": z, "proxies": own, "noise": noise, "n": 3}
    contract.check_rejects(kernel.operators.spherical_expansion_fwd, good, bad)
    grad = torch.ones(36, 6, device=device)
    bad |= {"short grad": {"grad": grad[:35]}, "grad of another dtype": {"grad": grad.double()}}
    contract.check_rejects(kernel.operators.spherical_expansion_bwd, {"grad": grad, **good}, bad)


# SphericalExpansionLoss.


def proxy_loss(classes=5, d=16, device="cpu", seed=0):
    torch.manual_seed(seed)
    return losses.ProxyAnchorLoss(classes, d).to(device)


@pytest.mark.parametrize(
    "epoch, total, expected",
    [(0, 60, 0.0), (30, 60, 0.2), (60, 60, 0.4), (90, 60, 0.4), (100, 1000, 0.2), (250, 1000, 0.4), (0.25, 1, None)],
)
def test_schedule(epoch, total, expected):
    """The authors' cosine: over the run, or over its first 200 epochs."""
    loss = losses.SphericalExpansionLoss(losses.RankedListLoss())
    assert loss.fraction == 0.4
    loss.set_epoch(epoch, total)
    formula = 0.4 - 0.4 * (math.cos(math.pi * min(min(epoch, 200) / min(total, 200), 1)) + 1) / 2
    assert loss.fraction == pytest.approx(formula if expected is None else expected)
    other = losses.SphericalExpansionLoss(losses.RankedListLoss(), min_fraction=0.1, max_fraction=0.1)
    other.set_epoch(epoch, total)
    assert other.fraction == pytest.approx(0.1)


@pytest.mark.parametrize("m, fraction, count", [(10, 0.25, 2), (10, 0.35, 4), (30, 0.25, 8), (7, 0.4, 3), (10, 0.0, 0)])
def test_how_many_are_expanded(backend, device, m, fraction, count):
    """Halves go to the even number, as in the authors' code."""
    problem = Problem(m, 16, 8, torch.float32, device=device)
    loss = losses.SphericalExpansionLoss(proxy_loss(device=device), min_fraction=fraction, max_fraction=fraction)
    loss(problem.z, problem.labels)
    assert int(loss.last_stats["expanded"]) == count


def test_the_nearest_to_their_proxies_are_expanded(backend, device):
    """The sum of two losses, the second of the synthetics of the top 40 % by z·p."""
    problem = Problem(30, 16, 4, torch.float64, seed=25, device=device)
    base = proxy_loss(device=device).double()
    loss = losses.SphericalExpansionLoss(base, n=4, weight=0.3)
    own = torch.nn.functional.normalize(base.proxies.detach(), dim=1)[problem.labels]
    similarity = (torch.nn.functional.normalize(problem.z, dim=1) * own).sum(1)
    index = similarity.topk(12).indices
    torch.manual_seed(4)
    got = loss(problem.z, problem.labels)
    stats = loss.last_stats
    torch.manual_seed(4)
    more = F.spherical_expansion(problem.z, problem.labels, base.proxies, n=4, index=index)
    extra = base(more.embeddings, more.labels)
    expected = base(problem.z, problem.labels) + 0.3 * extra
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(stats["synthetic_loss"], extra.detach())
    assert set(stats) == {"pos_term", "neg_term", "synthetic_loss", "expanded"}
    torch.testing.assert_close(stats["pos_term"], base.last_stats["pos_term"])
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    assert loss.proxies is base.proxies


@pytest.mark.parametrize("differentiable", [False, True])
def test_synthetics_train_the_proxies_only(backend, device, differentiable):
    problem = Problem(20, 16, 4, torch.float64, seed=26, device=device)
    base = proxy_loss(device=device).double()
    loss = losses.SphericalExpansionLoss(base, n=4, differentiable=differentiable)

    def grads(module):
        z = problem.z.clone().requires_grad_()
        torch.manual_seed(5)
        return torch.autograd.grad(module(z, problem.labels), [z, base.proxies])

    (plain_z, plain_p), (z, p) = grads(base), grads(loss)
    assert torch.equal(z, plain_z) != differentiable
    assert not torch.equal(p, plain_p)


@pytest.mark.parametrize("with_ids", [False, True])
def test_around_a_pair_loss(backend, device, with_ids):
    """The synthetics are the detached gallery of the batch; classes of one sample have none."""
    pairs = make_pairs("random", 30, d=16, classes=9, dtype=torch.float64, seed=27, device=device)
    labels = pairs.labels.clone()
    labels[:4] = torch.arange(100, 104, device=device)
    loss = losses.SphericalExpansionLoss(losses.RankedListLoss(), n=3, max_fraction=1.0)
    ids = torch.arange(30, device=device) // 2
    given = {"ids": ids} if with_ids else {}
    torch.manual_seed(6)
    value = loss(pairs.embeddings, labels, **given)
    alone = torch.tensor([bool((labels == y).sum() == 1) for y in labels], device=device)
    assert int(loss.last_stats["expanded"]) == int((~alone).sum())

    rows = torch.nn.functional.normalize(pairs.embeddings, dim=1)
    means = torch.stack([rows[labels == y].mean(0) for y in labels])
    similarity = (rows * torch.nn.functional.normalize(means, dim=1)).sum(1).masked_fill(alone, -torch.inf)
    index = similarity.argsort(descending=True, stable=True)
    torch.manual_seed(6)
    more = F.spherical_expansion(pairs.embeddings, labels, n=3, index=index)
    keep = more.valid.repeat_interleave(3)
    more_ids = {"ids": ids, "ref_ids": ids[index].repeat_interleave(3)[keep]} if with_ids else {}
    extra = F.ranked_list_loss(pairs.embeddings, labels, more.embeddings[keep], more.labels[keep], **more_ids)
    expected = F.ranked_list_loss(pairs.embeddings, labels, **given) + 0.2 * extra
    torch.testing.assert_close(value, expected)


def test_ignore_index_of_the_base_loss(backend, device):
    """The base loss's own one is used; one of None is a label that no class has while the synthetics are its gallery,
    and None again afterwards: the caller's loss is not changed.
    """
    pairs = make_pairs("random", 12, d=16, classes=12, labels="distinct", device=device)
    for ignored in (None, 3):
        seen = []

        class Base(losses.RankedListLoss):
            def forward(self, *args, **options):
                seen.append(self.ignore_index)  # noqa: B023
                return super().forward(*args, **options)

        base = Base(ignore_index=ignored)
        loss = losses.SphericalExpansionLoss(base, max_fraction=1.0)
        assert base.ignore_index == ignored
        value = loss(*pairs[:2])
        torch.testing.assert_close(value, F.ranked_list_loss(*pairs[:2], ignore_index=ignored))
        assert int(loss.last_stats["expanded"]) == 0
        assert seen == [-(2**63) if ignored is None else ignored, ignored]
        assert base.ignore_index == ignored


def test_ignore_index_is_restored_when_the_base_loss_raises(backend, device):
    class Base(losses.RankedListLoss):
        def forward(self, *args, **options):
            raise RuntimeError("no")

    base = Base()
    pairs = make_pairs("random", 12, d=16, device=device)
    with pytest.raises(RuntimeError, match="no"):
        losses.SphericalExpansionLoss(base)(*pairs[:2])
    assert base.ignore_index is None


def test_nothing_expanded_is_the_base_loss(backend, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    base = proxy_loss(device=device)
    loss = losses.SphericalExpansionLoss(base)
    loss.set_epoch(0, 10)
    assert torch.equal(loss(problem.z, problem.labels), base(problem.z, problem.labels))
    assert float(loss.last_stats["synthetic_loss"]) == 0
    assert float(loss(problem.z[:0], problem.labels[:0]).detach()) == 0


def test_with_anti_collapse_around_it(backend, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    base = proxy_loss(device=device)
    loss = losses.AntiCollapseLoss(losses.SphericalExpansionLoss(base))
    assert loss.on == "batch_proxies"
    torch.manual_seed(7)
    value = loss(problem.z, problem.labels)
    torch.manual_seed(7)
    inner = losses.SphericalExpansionLoss(base)(problem.z, problem.labels)
    torch.testing.assert_close(value, inner - 1e-3 * F.coding_rate(base.proxies))
    assert {"rate", "synthetic_loss", "pos_term"} <= set(loss.last_stats)


def test_loss_compiles(kernel, device):
    problem = Problem(20, 16, 8, torch.float32, device=device)
    for base in (proxy_loss(device=device), losses.RankedListLoss()):
        loss = losses.SphericalExpansionLoss(base)
        torch.compiler.reset()
        compiled = torch.compile(lambda z, y, loss=loss: loss(z, y), fullgraph=True, backend="aot_eager")
        torch.manual_seed(8)
        got = compiled(problem.z, problem.labels)
        torch.manual_seed(8)
        torch.testing.assert_close(got, loss(problem.z, problem.labels))


def test_loss_messages(backend, device):
    op = "SphericalExpansionLoss: "
    contract.check_messages(
        losses.SphericalExpansionLoss,
        {"base_loss": losses.RankedListLoss()},
        [
            (
                {"min_fraction": 0.5},
                op + "min_fraction, max_fraction must be 0 <= min <= max <= 1, got 0.5, 0.4",
            ),
            ({"max_fraction": 1.5}, op + "min_fraction, max_fraction must be 0 <= min <= max <= 1, got 0.0, 1.5"),
        ],
    )
    loss = losses.SphericalExpansionLoss(proxy_loss(device=device))
    with pytest.raises(ValueError, match="epoch, total must be >= 0 and > 0, got 3, 0"):
        loss.set_epoch(3, 0)
    problem = Problem(20, 16, 8, torch.float32, device=device)
    with pytest.raises(ValueError, match=r"labels must be in \[0, C\) with C=5, got 9"):
        loss(problem.z, problem.labels + 5)
    with pytest.raises(ValueError, match=r"spherical_expansion: n must be at most D - 1 = 5, got 8"):
        losses.SphericalExpansionLoss(proxy_loss(5, 6, device))(problem.z[:, :6], problem.labels)
