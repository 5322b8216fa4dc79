"""cholesky: the log-determinant, its gradient, and what is not positive definite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import contract
from support.contract import FLOAT_IDS, FLOATS, assert_identical
from support.matrices import SMALL, definite, matrices, relative

import dmlkernels
from dmlkernels import functional as F

SIZES = [1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 40, 64, 65]


@pytest.mark.parametrize("batch", [1, 3, 37])
@pytest.mark.parametrize("n", SIZES)
def test_logdet_against_numpy(backend, device, n, batch):
    a = definite(batch, n, seed=1, device=device)
    incoming = torch.linspace(-1, 2, batch, dtype=torch.float64, device=device)
    outcome = matrices(F.cholesky_logdet, a, incoming)
    sign, expected = np.linalg.slogdet(a.cpu().numpy())
    assert (sign == 1).all()
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12, atol=1e-12)
    grad = incoming.cpu().numpy()[:, None, None] * np.linalg.inv(a.cpu().numpy())
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n", [1, 3, 16, 32, 33, 70])
def test_logdet_of_every_dtype(kernel, device, dtype, n):
    """Half matrices are judged as rounded: the factor and the gradient are float32's."""
    a = definite(5, n, dtype, seed=2, device=device)
    outcome = matrices(F.cholesky_logdet, a)
    assert outcome.value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert outcome.grads[0].dtype == dtype
    with dmlkernels.use_backend("reference"):
        truth = matrices(F.cholesky_logdet, a.double(), torch.randn(5, generator=torch.Generator().manual_seed(2)))
    eps = torch.finfo(outcome.value.dtype).eps
    cond = float(torch.linalg.cond(a.double()).max())
    torch.testing.assert_close(outcome.value.double(), truth.value, rtol=4 * eps, atol=n * cond * eps)
    allowed = 2 * cond * eps + torch.finfo(dtype).eps
    assert relative(outcome.grads[0], truth.grads[0]) <= allowed


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n", [96, 128, 129, 144, 145, 208, 209])
def test_logdet_around_the_limits_of_shared_memory(kernel, device, n, dtype):
    a = definite(2, n, dtype, seed=2, device=device)
    a[1, n // 2, n // 2] = -1
    outcome = matrices(lambda a: F.cholesky_logdet(a, check=False)[:1], a, torch.ones(1))
    expected, inverse = torch.linalg.slogdet(a[0].double())[1], torch.linalg.inv(a[0].double())
    eps, cond = torch.finfo(dtype).eps, float(torch.linalg.cond(a[0].double()))
    assert abs(float(outcome.value[0]) - float(expected)) <= n * cond * eps
    assert relative(outcome.grads[0][0], inverse) <= 2 * cond * eps
    assert F.cholesky_logdet(a, check=False).isnan().tolist() == [False, True]
    with pytest.raises(RuntimeError, match=r"A\[1\]"):
        F.cholesky_logdet(a)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("n", [2, 8, 31, 48, 100])
def test_logdet_of_ill_conditioned_matrices(kernel, device, n, condition):
    a = definite(4, n, torch.float32, condition, seed=3, device=device)
    outcome = matrices(F.cholesky_logdet, a)
    with dmlkernels.use_backend("reference"):
        truth = matrices(F.cholesky_logdet, a.double(), torch.randn(4, generator=torch.Generator().manual_seed(2)))
    assert relative(outcome.grads[0], truth.grads[0]) <= 2e-7 * condition
    assert relative(outcome.value, truth.value) <= 1e-6 + 1e-8 * condition


@pytest.mark.parametrize("n", [3, 7, 34])
def test_logdet_gradcheck(backend, device, n):
    b = torch.randn(2, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).to(device)
    eye = torch.eye(n, dtype=torch.float64, device=device)
    function = lambda b: F.cholesky_logdet(b @ b.mT + eye)  # noqa: E731
    assert torch.autograd.gradcheck(function, [b.requires_grad_()], fast_mode=n > 10)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("n", [4, 20, 50])
def test_only_the_lower_triangle_is_read(backend, device, n, dtype):
    a = definite(3, n, dtype, seed=5, device=device)
    upper = torch.ones(n, n, dtype=torch.bool, device=device).triu(1)
    dirty = a.masked_fill(upper, torch.nan)
    clean, other = matrices(F.cholesky_logdet, a), matrices(F.cholesky_logdet, dirty)
    assert_identical(other, clean)
    torch.testing.assert_close(clean.grads[0], clean.grads[0].mT)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("bad", ["negative", "zero", "indefinite", "nan", "minus_inf"])
@pytest.mark.parametrize("n", [4, 20, 50])
def test_not_positive_definite(backend, device, n, bad, dtype):
    a = definite(19, n, dtype, seed=6, device=device)
    broken = a.clone()
    for matrix in (5, 18):
        if bad == "indefinite":
            broken[matrix, -1, -1] = 1e-3
            broken[matrix, -1, 0] = 3.0
        else:
            broken[matrix, 2, 2] = {"negative": -1.0, "zero": 0.0, "nan": torch.nan, "minus_inf": -torch.inf}[bad]
    with pytest.raises(RuntimeError, match=r"cholesky_logdet: A must be positive definite \(check=True\), got A\[5\]"):
        F.cholesky_logdet(broken)
    outcome = matrices(lambda a: F.cholesky_logdet(a, check=False), broken)
    whole = matrices(F.cholesky_logdet, a)
    lost = torch.zeros(19, dtype=torch.bool, device=device).index_fill(0, torch.tensor([5, 18], device=device), True)
    assert torch.equal(outcome.value.isnan(), lost)
    assert bool(outcome.grads[0][lost].isnan().any(2).any(1).all())
    assert torch.equal(outcome.value[~lost], whole.value[~lost])
    assert torch.equal(outcome.grads[0][~lost], whole.grads[0][~lost])


def test_a_zero_pivot_above_the_small_kernel(backend, device):
    a = torch.stack([torch.eye(100), torch.zeros(100, 100)]).to(device).requires_grad_()
    logdet = F.cholesky_logdet(a, check=False)
    assert logdet[0].item() == 0
    assert bool(logdet[1].isnan())
    (grad,) = torch.autograd.grad(logdet[0], a)
    torch.testing.assert_close(grad[0], torch.eye(100, device=device))


def test_failing_matrix_has_its_index_in_the_flattened_batch(backend, device):
    a = definite(6, 3, device=device).reshape(2, 3, 3, 3).clone()
    a[1, 1, 0, 0] = -1
    with pytest.raises(RuntimeError, match=r"A\[4\]"):
        F.cholesky_logdet(a)
    assert F.cholesky_logdet(a, check=False).isnan().tolist() == [[False] * 3, [False, True, False]]


@pytest.mark.parametrize("shape", [(0, 0), (2, 0, 0), (0, 4, 4), (3, 0, 2, 2), (4, 4), (2, 3, 4, 4), (0, 40, 40)])
def test_logdet_shapes(backend, device, shape):
    a = torch.eye(shape[-1], dtype=torch.float64, device=device).expand(shape) * 2
    outcome = matrices(F.cholesky_logdet, a)
    expected = torch.full(shape[:-2], shape[-1] * np.log(2.0), dtype=torch.float64, device=device)
    torch.testing.assert_close(outcome.value, expected)
    assert outcome.grads[0].shape == shape


@pytest.mark.parametrize("n", [5, 40])
def test_strided_matrices(backend, device, n):
    a = definite(6, n, seed=28, device=device)
    whole = matrices(F.cholesky_logdet, a)
    views = {
        "columns": lambda a: torch.cat([a, torch.full_like(a, torch.nan)], 2)[:, :, :n],
        "rows": lambda a: torch.cat([torch.full_like(a, torch.nan), a], 1)[:, n:],
        "batch_last": lambda a: a.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    }
    for view in views.values():
        assert_identical(matrices(lambda a, view=view: F.cholesky_logdet(view(a)), a), whole)
    seed = torch.ones((), dtype=torch.float64, device=device)
    assert_identical(
        matrices(F.cholesky_logdet, a, seed.expand(6)), matrices(F.cholesky_logdet, a, seed.expand(6).contiguous())
    )


# opcheck, torch.compile, vmap, determinism.


@pytest.mark.parametrize("n", [5, 40])
def test_opcheck_cholesky(kernel, device, n):
    a = definite(3, n, torch.float32, device=device)
    value, inverse = kernel.operators.cholesky_fwd(a, True, True)
    contract.check_operator(kernel.operators.cholesky_bwd, (torch.ones_like(value), inverse))
    contract.check_operator(kernel.operators.cholesky_fwd, (a.mT.requires_grad_(), False, True))


def test_compile_cholesky(kernel, device):
    torch.compiler.reset()
    compiled = torch.compile(F.cholesky_logdet, fullgraph=True, backend="aot_eager")
    for a in (definite(3, 6, device=device), definite(5, 40, device=device)):
        assert_identical(matrices(compiled, a), matrices(F.cholesky_logdet, a))


def test_vmap_cholesky(kernel, device):
    a = definite(12, 6, device=device).reshape(3, 4, 6, 6)
    assert torch.equal(torch.vmap(F.cholesky_logdet)(a), F.cholesky_logdet(a))


def test_deterministic_cholesky(kernel, device):
    contract.check_deterministic(F.cholesky_logdet, [definite(70, SMALL, torch.float32, device=device)])
