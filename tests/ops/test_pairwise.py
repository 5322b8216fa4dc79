"""pairwise: values, gradients, edge shapes, strides, opcheck, torch.compile, vmap, determinism, messages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import brute_force, contract
from support.contract import VIEWS, assert_close, assert_identical, thinned
from support.pairwise import FUNCTIONS, NORMALIZED, bound, match, rows

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import KINDS, Outcome, evaluate

# Values and gradients against loops.


@pytest.mark.parametrize("n", [None, 9], ids=["self", "other"])
@pytest.mark.parametrize("kind", ["random", "duplicates", "zero_rows"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_brute_force(backend, device, name, kind, n):
    tensors = rows(kind, 11, n, 5, torch.float64, 1, device)
    weights = torch.linspace(-1, 2, 11 * (n or 11), dtype=torch.float64, device=device).reshape(11, -1)
    outcome = evaluate(bound(name), tensors, weights)
    numbers = [t.cpu().numpy() for t in tensors]
    labels = [[0] * len(t) for t in numbers] if n else [[0] * 11]
    problem = brute_force.Problem(*[v for p in zip(numbers, labels) for v in p], normalize=name in NORMALIZED)
    d, w = np.array(problem.d), weights.cpu().numpy()
    if name in ("cosine", "dot"):
        expected = [[sum(a * b for a, b in zip(f, e)) for e in problem.e] for f in problem.f]
        to_f, to_e = w @ problem.e, w.T @ problem.f
        if n is None:
            to_f, to_e = to_f + to_e, None
        through = problem._through_normalisation
        grads = [through(to_f, problem.x, problem.f)] + ([] if n is None else [through(to_e, problem.g, problem.e)])
    else:
        expected = d**2 if "squared" in name else d
        slope = 2 * d * w if "squared" in name else w
        grads = problem.scatter({(i, j): slope[i, j] for i in range(11) for j in range(d.shape[1])})
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12, atol=1e-13)
    for got, want in zip(outcome.grads, grads, strict=False):
        np.testing.assert_allclose(got.cpu(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 6], ids=["self", "other"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(backend, device, name, n):
    leaves = [t.requires_grad_() for t in rows("random", 7, n, 4, torch.float64, 2, device)]
    off_diagonal = ~torch.eye(7, n or 7, dtype=torch.bool, device=device) if n is None else slice(None)

    def apart(*tensors):
        return bound(name)(*tensors)[off_diagonal]

    assert torch.autograd.gradcheck(apart, leaves)


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("n", [None, 77], ids=["self", "other"])
@pytest.mark.parametrize("kind", thinned(KINDS, "random", "duplicates"))
@pytest.mark.parametrize("name", thinned(FUNCTIONS, "cosine", "euclidean"))
def test_every_dtype(kernel, device, dtype, name, kind, n):
    match(name, rows(kind, 70, n, 16, dtype, 3, device), max_quiet=0.2)


@pytest.mark.parametrize("gap", thinned([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], 1e-3))
@pytest.mark.parametrize("n", [None, 60], ids=["self", "other"])
@pytest.mark.parametrize("name", ["euclidean", "unit_euclidean", "squared", "unit_squared"])
def test_near_duplicates(kernel, device, name, n, gap):
    generator = torch.Generator().manual_seed(4)
    x, u = (torch.nn.functional.normalize(torch.randn(60, 24, generator=generator), dim=1) for _ in range(2))
    tensors = [x.to(device), (x + gap * u).to(device)]
    if n is None:
        tensors = [torch.cat(tensors)]
    # eps over the gap is what a direction may be off by: 1 % at 1e-5, a tenth at 1e-6, eight times that in the rule.
    truth = match(name, tensors, max_quiet=1.0 if gap < 1e-5 else 0.4)
    got = bound(name)(*tensors).double()
    twins = torch.arange(60, device=device), torch.arange(60, device=device) + (60 if n is None else 0)
    true, found = truth.value[twins], got[twins]
    if "squared" in name:
        true, found = true.sqrt(), found.sqrt()
    # At 0.1 the product form still holds (17 eps of unit rows); nearer than that only a unit row's own rounding counts.
    rounding = 2e-6 if gap == 0.1 else 2e-7 if name in NORMALIZED else 1e-12
    assert bool(((found - true).abs() <= 1e-5 * true + rounding).all())


@pytest.mark.parametrize("name", ["euclidean", "unit_euclidean", "squared"])
def test_coincident_rows(backend, device, dtype, name):
    """A row's distance to itself and to its copies is exactly 0, without a gradient."""
    x = rows("random", 70, None, 19, dtype, 5, device)[0]
    out = bound(name)(torch.cat([x, x]))
    zero = torch.eye(70, dtype=torch.bool, device=device).repeat(2, 2)
    assert torch.equal(out[zero], torch.zeros_like(out[zero]))
    assert bool((out[~zero] > 0).all())
    weights = zero.to(dtype)
    grad = evaluate(bound(name), [torch.cat([x, x])], weights).grads[0]
    assert torch.equal(grad, torch.zeros_like(grad))


# Shapes.


@pytest.mark.parametrize(
    "m, n",
    thinned(
        [(1, None), (2, None), (127, None), (129, None), (257, None), (1, 300), (300, 1)],
        (1, None),
        (129, None),
        (300, 1),
    ),
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows(kernel, device, name, m, n):
    match(name, rows("random", m, n, 6, seed=6, device=device), max_quiet=0.2)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@pytest.mark.parametrize("d", thinned([3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 100, 128, 130], 17, 130))
@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_widths(kernel, device, name, d, dtype):
    match(name, rows("random", 40, 35, d, dtype, 7, device), max_quiet=0.2)


def test_one_feature(backend, device):
    x = torch.tensor([[2.0], [-0.5], [0.0], [8.0]], device=device)
    sign = [1.0, -1.0, 0.0, 1.0]
    assert F.pairwise_similarity(x).tolist() == [[a * b for b in sign] for a in sign]
    assert F.pairwise_distance(x).tolist() == [
        [abs(a - b) for b in (2.0, -0.5, 0.0, 8.0)] for a in (2.0, -0.5, 0.0, 8.0)
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_features(backend, device, name):
    assert torch.equal(bound(name)(torch.empty(5, 0, device=device)), torch.zeros(5, 5, device=device))


@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("name", thinned(FUNCTIONS, "euclidean"))
def test_nothing(backend, device, name, m, n):
    outcome = evaluate(bound(name), rows("random", m, n, 4, device=device))
    assert outcome.value.shape == (m, m if n is None else n)
    for grad in outcome.grads:
        assert torch.equal(grad, torch.zeros_like(grad))


# Strides.


@pytest.mark.parametrize("view", thinned(VIEWS, "columns"))
@pytest.mark.parametrize("n", [None, 67], ids=["self", "other"])
@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_strided_inputs(kernel, device, dtype, name, view, n):
    tensors = rows("random", 130, n, 9, dtype, 8, device)

    def through_view(*leaves):
        return bound(name)(*(VIEWS[view](t) for t in leaves))

    assert_identical(evaluate(through_view, tensors), evaluate(bound(name), tensors))


def test_strided_and_expanded_gradients(kernel, device):
    tensors = rows("random", 130, 140, 9, seed=9, device=device)
    weights = torch.randn(140, 130, generator=torch.Generator().manual_seed(1)).to(device)
    for incoming in (weights.t(), weights[:1].expand(140, 130).t(), torch.ones((), device=device).expand(130, 140)):
        a, b = (evaluate(bound("cosine"), tensors, w) for w in (incoming, incoming.contiguous()))
        assert_identical(a, b)


@pytest.mark.heavy
def test_expanded_inputs(backend, device):
    row = torch.tensor([[3.0, 4.0]], device=device)
    torch.testing.assert_close(F.pairwise_similarity(row.expand(130, 2)), torch.ones(130, 130, device=device))
    assert torch.equal(F.pairwise_distance(row.expand(130, 2)), torch.zeros(130, 130, device=device))


# Properties.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_self_is_both_sides(backend, device, name, dtype):
    (x,) = rows("random", 140, None, 8, dtype, 10, device)
    own, apart = evaluate(bound(name), [x]), evaluate(bound(name), [x, x])
    assert_close(own, Outcome(apart.value, [apart.grads[0] + apart.grads[1]]), factor=256.0)


@pytest.mark.parametrize("name", thinned(FUNCTIONS, "cosine", "euclidean", "unit_euclidean"))
def test_symmetric_to_the_bit(kernel, device, dtype, name):
    (out,) = rows("random", 300, None, 9, dtype, 10, device)
    out = bound(name)(out)
    rounding = kernel.product_rounding and max(kernel.product_rounding, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(out, out.T, rtol=rounding, atol=rounding)


@pytest.mark.heavy
@pytest.mark.parametrize("name", FUNCTIONS)
def test_row_order_does_not_matter(kernel, device, name):
    tensors = rows("random", 200, 140, 8, seed=11, device=device)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1)).to(device)
    weights = torch.randn(200, 140, generator=torch.Generator().manual_seed(2)).to(device)
    a = evaluate(bound(name), tensors, weights)
    b = evaluate(bound(name), [tensors[0][order], tensors[1]], weights[order])
    assert_close(b, Outcome(a.value[order], [a.grads[0][order], a.grads[1]]), factor=256.0)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_gradient_of_one_side(backend, device, name, wanted):
    tensors = rows("random", 130, 140, 6, seed=12, device=device)
    both = evaluate(bound(name), tensors, torch.ones(130, 140, device=device))
    leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors, wanted, strict=True)]
    value = bound(name)(*leaves)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.sum().backward()
    for leaf, expected, w in zip(leaves, both.grads, wanted, strict=True):
        assert (leaf.grad is not None) == w
        if w:
            assert_close(Outcome(value.detach(), [leaf.grad]), Outcome(both.value, [expected]))


@pytest.mark.parametrize("x_dtype, y_dtype", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_promoted(backend, device, x_dtype, y_dtype):
    x, y = rows("random", 30, 20, 6, device=device)
    out = F.pairwise_similarity(x.to(x_dtype), y.to(y_dtype))
    assert out.dtype == y_dtype
    assert torch.equal(out, F.pairwise_similarity(x.to(x_dtype).to(y_dtype), y.to(y_dtype)))


def test_result_dtype(backend, device, dtype):
    (x,) = rows("random", 20, None, 6, dtype, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        for name in FUNCTIONS:
            assert bound(name)(x).dtype == dtype


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_non_finite_rows(backend, device, name, bad):
    """A bad row spoils its own row or column and nothing else."""
    tensors = rows("random", 70, 60, 6, seed=13, device=device)
    clean = bound(name)(*tensors)
    tensors[0][65, 1] = bad
    out = bound(name)(*tensors)
    others = torch.arange(70, device=device) != 65
    assert torch.equal(out[others], clean[others])
    assert not bool(out[65].isfinite().any())


# opcheck, torch.compile, vmap, double backward, determinism.


@pytest.mark.heavy
@pytest.mark.parametrize("view", ["offset", "transposed"])
@pytest.mark.parametrize("n", [None, 7], ids=["self", "other"])
@pytest.mark.parametrize("metric", ["dot", "euclidean", "squared"])
def test_opcheck(kernel, device, metric, n, view):
    tensors = [VIEWS[view](t) for t in rows("random", 9, n, 4, device=device)]
    grad = torch.randn(9, n or 9, device=device)
    operands = (*tensors, None)[:2]
    contract.check_operator(kernel.operators.pairwise_bwd, (grad, *operands, metric, True, "ieee"))
    leaves = [None if t is None else t.requires_grad_() for t in operands]
    contract.check_operator(kernel.operators.pairwise_fwd, (*leaves, metric, True, "ieee"))


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 33], ids=["self", "other"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_compile(kernel, device, name, n):
    contract.check_compiled(bound(name), rows("random", 40, n, 6, device=device))


@pytest.mark.full
@pytest.mark.heavy
def test_compile_with_inductor(kernel, device):
    contract.check_compiled(bound("cosine"), rows("random", 40, 33, 6, device=device), backend="inductor")


@pytest.mark.parametrize("in_dims", [(0, None), (1, 0), (None, 0)])
@pytest.mark.parametrize("name", thinned(FUNCTIONS, "cosine", "unit_euclidean"))
def test_vmap(kernel, device, name, in_dims):
    generator = torch.Generator().manual_seed(14)
    shapes = {None: (20, 5), 0: (3, 20, 5), 1: (20, 3, 5)}
    operands = [torch.randn(shapes[dim], generator=generator).to(device) for dim in in_dims]
    got = torch.vmap(bound(name), in_dims=in_dims)(*operands)
    for b in range(3):
        one = [t if dim is None else t.select(dim, b) for t, dim in zip(operands, in_dims, strict=True)]
        assert torch.equal(got[b], bound(name)(*one))


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_double_backward(kernel, device, name):
    contract.check_no_double_backward(bound(name), rows("random", 20, None, 5, device=device)[0])


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 290], ids=["self", "other"])
@pytest.mark.parametrize("name", thinned(FUNCTIONS, "euclidean"))
def test_deterministic(kernel, device, name, n):
    contract.check_deterministic(bound(name), rows("random", 300, n, 17, device=device))


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    (x,) = rows("random", 140, None, 6, seed=15, device=device)
    leaf = x.clone().requires_grad_()
    value = bound("euclidean")(leaf).sum()
    with dmlkernels.use_backend("reference"):
        value.backward()
    assert torch.equal(leaf.grad, evaluate(bound("euclidean"), [x], torch.ones(140, 140, device=device)).grads[0])


# Messages.


@pytest.mark.parametrize("function", [F.pairwise_similarity, F.pairwise_distance])
def test_messages(backend, device, function):
    x, y = torch.randn(6, 4, device=device), torch.randn(5, 4, device=device)
    op = function.__name__ + ": "
    cases = [
        ({"x": "rows"}, op + "x must be a (M, D) tensor, got str"),
        ({"x": x[0]}, op + "x must be (M, D), got (4,)"),
        ({"x": x.long()}, op + "x must be float64, float32, bfloat16 or float16, got torch.int64"),
        ({"x": x.to(torch.complex64)}, op + "x must be float64, float32, bfloat16 or float16, got torch.complex64"),
        ({"y": 3.0}, op + "y must be a (N, D) tensor, got float"),
        ({"y": y[0]}, op + "y must be (N, D), got (4,)"),
        ({"y": y.bool()}, op + "y must be float64, float32, bfloat16 or float16, got torch.bool"),
        ({"y": y[:, :3]}, op + "y must be (N, D) with D=4, got (5, 3)"),
        ({"y": y.to("meta")}, op + f"y must be on {x.device} like the first argument, got meta"),
    ]
    if function is F.pairwise_similarity:
        cases += [({"metric": "l2"}, op + "metric must be 'cosine' or 'dot', got 'l2'")]
    contract.check_messages(function, {"x": x, "y": y}, cases)


@pytest.mark.heavy
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 140),
    n=st.none() | st.integers(1, 140),
    d=st.integers(5, 40),
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(sorted(FUNCTIONS)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 999),
)
def test_any_problem(kernel, device, m, n, d, kind, name, dtype, seed):
    match(name, rows(kind, m, n, d, dtype, seed, device), max_quiet=1.0)
