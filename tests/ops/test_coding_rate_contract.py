"""The coding rate's contract: edges, strides, dtypes, operators, compilation and messages."""

from __future__ import annotations

import pytest
import torch
from support import contract
from support.coding_rate import RATES, rate
from support.contract import VIEWS, assert_identical, strided
from support.matrices import definite, matrices, relative

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import evaluate, make_pairs

# Edges, strides, dtypes.


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (4, 0)])
@pytest.mark.parametrize("name", ["total", "class", "reduction", "official"])
def test_nothing_to_code(backend, device, name, shape):
    y = torch.zeros(shape[0], dtype=torch.int64, device=device)
    outcome = evaluate(rate(name, y), [torch.zeros(shape, device=device)])
    assert float(outcome.value) == 0
    assert outcome.grads[0].shape == shape


@pytest.mark.parametrize("name", ["total", "class"])
def test_zero_rows(backend, device, name):
    """They take part in n and in nothing else, and get no gradient."""
    pairs = make_pairs("zero_rows", 40, d=8, seed=26, device=device)
    outcome = evaluate(rate(name, pairs.labels), [pairs.embeddings])
    zero = (pairs.embeddings == 0).all(1)
    assert bool(zero.any())
    assert torch.equal(outcome.grads[0][zero], torch.zeros_like(outcome.grads[0][zero]))
    assert bool((outcome.grads[0][~zero] != 0).any(1).all())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["total", "class"])
def test_strided_inputs(kernel, device, dtype, view, name):
    pairs = make_pairs("random", 70, d=9, dtype=dtype, seed=27, device=device)
    through = lambda x: RATES[name](VIEWS[view](x), strided(pairs.labels))  # noqa: E731
    assert_identical(evaluate(through, [pairs.embeddings]), evaluate(rate(name, pairs.labels), [pairs.embeddings]))


def test_result_dtype(backend, device, dtype):
    pairs = make_pairs("random", 20, d=6, dtype=dtype, device=device)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name in RATES:
        assert rate(name, pairs.labels)(pairs.embeddings).dtype == expected
        with torch.autocast(device, dtype=torch.bfloat16):
            torch.testing.assert_close(
                rate(name, pairs.labels)(pairs.embeddings), rate(name, pairs.labels)(pairs.embeddings.clone())
            )


@pytest.mark.large
def test_small_incoming_gradients_of_half_inputs(backend, device):
    """What a GradScaler is for: the gradient of the rate is float32 until it has been scaled."""
    pairs = make_pairs("random", 4000, d=8, dtype=torch.float16, device=device)
    scaled = evaluate(rate("total", None), [pairs.embeddings], torch.tensor(2.0**14, device=device)).grads[0]
    true = evaluate(rate("total", None), [pairs.embeddings.float()], torch.tensor(2.0**14, device=device)).grads[0]
    assert relative(scaled, true) < 1e-3


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["total", "class"])
@pytest.mark.parametrize("m, d", [(50, 6), (6, 50)])
def test_non_finite_rows(backend, device, name, bad, normalize, m, d):
    pairs = make_pairs("random", m, d=d, device=device)
    pairs.embeddings[m - 1, 2] = bad
    name = name if normalize else {"total": "raw", "class": "class_raw"}[name]
    assert bool(rate(name, pairs.labels)(pairs.embeddings).isnan())


@pytest.mark.parametrize("name", ["total", "class"])
def test_overflowing_norms(backend, device, name):
    """Finite numbers whose squares are not: the row would count as zero."""
    pairs = make_pairs("random", 30, d=6, device=device)
    pairs.embeddings[3] = 1e30
    assert bool(rate(name, pairs.labels)(pairs.embeddings).isnan())
    assert bool(rate(name, pairs.labels)(pairs.embeddings.double()).isfinite())


def test_inputs_are_left_alone(backend, device):
    pairs = make_pairs("random", 60, d=6, device=device)
    x, y, a = pairs.embeddings.clone(), pairs.labels.clone(), definite(3, 40, device=device)
    kept = a.clone()
    for name in RATES:
        evaluate(rate(name, pairs.labels), [pairs.embeddings])
    F.cholesky_logdet(a)
    assert torch.equal(pairs.embeddings, x)
    assert torch.equal(pairs.labels, y)
    assert torch.equal(a, kept)


def test_no_gradient_is_formed_unless_needed(kernel, device):
    pairs = make_pairs("random", 20, d=6, device=device)
    fwd = kernel.operators.coding_rate_fwd
    for labels in (None, pairs.labels):
        needed, not_needed = (fwd(pairs.embeddings, labels, 0.5, 1.0, "mcr2", True, "ieee", n) for n in (True, False))
        assert torch.equal(needed[0], not_needed[0])
        assert (needed[1].shape, not_needed[1].shape) == ((20, 6), (0, 6))
    x = pairs.embeddings.requires_grad_()
    with torch.no_grad():
        assert not F.coding_rate(x).requires_grad
    with pytest.raises(RuntimeError, match="kept nothing to differentiate by"):
        fwd(x, None, 0.5, 1.0, "mcr2", True, "ieee", False)[0].backward()
    assert kernel.operators.cholesky_fwd(definite(2, 5), True, False)[1].shape == (0, 5, 5)


# opcheck, torch.compile, vmap, double backward, determinism.


@pytest.mark.heavy
@pytest.mark.parametrize("view", ["plain", "transposed"])
@pytest.mark.parametrize("labelled", [False, True], ids=["total", "class"])
@pytest.mark.parametrize("m, d", [(9, 4), (4, 9)])
def test_opcheck(kernel, device, m, d, labelled, view):
    pairs = make_pairs("random", m, d=d, classes=3, device=device)
    x = pairs.embeddings if view == "plain" else VIEWS[view](pairs.embeddings)
    options = (strided(pairs.labels) if labelled else None, 0.5, 1.0, "mcr2", True, "ieee", True)
    value, grad = kernel.operators.coding_rate_fwd(x, *options)
    contract.check_operator(kernel.operators.coding_rate_bwd, (torch.ones_like(value), grad))
    contract.check_operator(kernel.operators.coding_rate_fwd, (x.requires_grad_(), *options))


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["total", "class", "reduction", "exponential"])
def test_compile(kernel, device, name):
    pairs = make_pairs("random", 40, d=6, device=device)
    contract.check_compiled(rate(name, pairs.labels), [pairs.embeddings])


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    pairs = make_pairs("random", 40, d=6, dtype=torch.bfloat16, device=device)
    torch.compiler.reset()
    compiled = torch.compile(F.coding_rate_reduction, fullgraph=True)
    torch.testing.assert_close(compiled(*pairs[:2]), F.coding_rate_reduction(*pairs[:2]))


@pytest.mark.heavy
def test_compile_takes_other_sizes(kernel, device):
    torch.compiler.reset()
    compiled = torch.compile(F.coding_rate_reduction, fullgraph=True, backend="aot_eager", dynamic=True)
    for m in (130, 20, 257):
        pairs = make_pairs("random", m, d=6, device=device)
        torch.testing.assert_close(compiled(*pairs[:2]), F.coding_rate_reduction(*pairs[:2]))


@pytest.mark.parametrize("shared_labels", [True, False])
def test_vmap(kernel, device, shared_labels):
    problems = [make_pairs("random", 30, d=5, classes=3, seed=s, device=device) for s in range(3)]
    x = torch.stack([p.embeddings for p in problems], 1)
    y = problems[0].labels if shared_labels else torch.stack([p.labels for p in problems])
    got = torch.vmap(F.class_coding_rate, in_dims=(1, None if shared_labels else 0))(x, y)
    for b, p in enumerate(problems):
        assert torch.equal(got[b], F.class_coding_rate(p.embeddings, problems[0].labels if shared_labels else p.labels))


def test_double_backward(kernel, device):
    x = make_pairs("random", 20, d=5, device=device).embeddings
    contract.check_no_double_backward(F.coding_rate, x)
    contract.check_no_double_backward(F.cholesky_logdet, definite(3, 5, device=device))


def test_double_backward_of_the_reference():
    x = make_pairs("random", 6, d=4, dtype=torch.float64).embeddings.requires_grad_()
    with dmlkernels.use_backend("reference"):
        assert torch.autograd.gradgradcheck(F.coding_rate, [x])


@pytest.mark.heavy
@pytest.mark.parametrize("m, d", [(300, 17), (40, 90)])
def test_deterministic(kernel, device, m, d):
    pairs = make_pairs("random", m, d=d, classes=40, device=device)
    contract.check_deterministic(rate("class", pairs.labels), [pairs.embeddings])


@pytest.mark.heavy
def test_large_matrices_twice(kernel, device):
    """LAPACK's and the BLAS's roundings may follow the number of threads, but not the call."""
    a = definite(7, 60, torch.float32, device=device)
    assert_identical(matrices(F.cholesky_logdet, a), matrices(F.cholesky_logdet, a))
    for m, d in ((300, 200), (300, 17), (40, 90)):
        x = make_pairs("random", m, d=d, device=device).embeddings
        assert_identical(evaluate(F.coding_rate, [x]), evaluate(F.coding_rate, [x]))


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    x = make_pairs("random", 30, d=6, device=device).embeddings
    leaf = x.clone().requires_grad_()
    value = F.coding_rate(leaf)
    with dmlkernels.use_backend("reference"):
        value.backward()
    assert torch.equal(leaf.grad, evaluate(F.coding_rate, [x], torch.ones((), device=device)).grads[0])


# Messages.

POSITIVE_NUMBERS = (0, -1.0, float("nan"), float("inf"), True, "1")


def test_messages(backend, device):
    x, y = torch.randn(12, 4, device=device), torch.arange(12, device=device) % 3
    op = "coding_rate: "
    contract.check_messages(
        F.coding_rate,
        {"z": x},
        [
            ({"z": [[1.0]]}, op + "z must be a (M, D) tensor, got list"),
            ({"z": x[0]}, op + "z must be (M, D), got (4,)"),
            ({"z": x.long()}, op + "z must be float64, float32, bfloat16 or float16, got torch.int64"),
            ({"scale": "mine"}, op + "scale must be 'mcr2' or 'official_proxy', got 'mine'"),
            *(({"gain": v}, op + f"gain must be a positive number, got {v!r}") for v in POSITIVE_NUMBERS),
            *(({"eps_squared": v}, op + f"eps_squared must be a positive number, got {v!r}") for v in POSITIVE_NUMBERS),
        ],
    )
    for function in (F.class_coding_rate, F.coding_rate_reduction):
        op = f"{function.__name__}: "
        contract.check_messages(
            function,
            {"z": x, "labels": y},
            [
                ({"z": x[None]}, op + "z must be (M, D), got (1, 12, 4)"),
                ({"labels": y[:11]}, op + "labels must be (M,) with M=12, got (11,)"),
                ({"labels": y[:, None]}, op + "labels must be (M,) with M=12, got (12, 1)"),
                ({"labels": [0] * 12}, op + "labels must be a (M,) integer tensor, got list"),
                (
                    {"labels": y.float()},
                    op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
                ),
                ({"eps_squared": 0.0}, op + "eps_squared must be a positive number, got 0.0"),
            ],
        )
    op = "anti_collapse_loss: "
    contract.check_messages(
        F.anti_collapse_loss,
        {"z": x},
        [
            ({"z": x[0]}, op + "z must be (M, D), got (4,)"),
            ({"form": "rate"}, op + "form must be 'neg_rate' or 'exp_neg_rate', got 'rate'"),
            ({"rate_weight": -2.0}, op + "rate_weight must be a positive number, got -2.0"),
        ],
    )
    op = "cholesky_logdet: "
    contract.check_messages(
        F.cholesky_logdet,
        {"A": torch.eye(3, device=device)},
        [
            ({"A": [[1.0]]}, op + "A must be a (..., n, n) tensor, got list"),
            ({"A": x}, op + "A must be (..., n, n), got (12, 4)"),
            ({"A": x[0]}, op + "A must be (..., n, n), got (4,)"),
            ({"A": torch.eye(3).long()}, op + "A must be float64, float32, bfloat16 or float16, got torch.int64"),
        ],
    )
