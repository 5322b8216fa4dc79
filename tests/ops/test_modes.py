"""Modes of differentiation of every operator: each is right, or raises and names the reference."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import re

import pytest
import torch
from support import operators as calls
from support.every_loss import ROWS
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from dmlkernels import _backend, _contract, _library, use_backend
from dmlkernels import functional as F

REFERENCE = r"dmlkernels\.use_backend\('reference'\)"
LOSSES = [op for op in calls.FORWARDS if calls.differentiable(op)]


def function(op, kernel, dtype=torch.float64, reference=True):
    """A number as a function of the operator's differentiable arguments, and these."""
    known = calls.arguments(op, kernel, dtype, reference)
    names = [name for name in calls.differentiable(op) if known[name] is not None]
    return lambda *xs: calls.value(op, kernel, known | dict(zip(names, xs, strict=True))), [
        known[name] for name in names
    ]


def gradients(f, xs):
    leaves = [x.clone().requires_grad_() for x in xs]
    return torch.autograd.grad(f(*leaves), leaves)


@pytest.mark.parametrize("reference", [True, False], ids=["reference", "self"])
@pytest.mark.parametrize("op", LOSSES)
def test_reverse(kernel, op, reference):
    """Along a direction the gradient is what the value changes by."""
    f, xs = function(op, kernel, reference=reference)
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in xs]
    along = [(v + v.mT) / 2 if op == "cholesky_fwd" else v for v in along]
    h = 1e-6
    change = f(*(x + h * v for x, v in zip(xs, along))) - f(*(x - h * v for x, v in zip(xs, along)))
    slope = sum((g * v).sum() for g, v in zip(gradients(f, xs), along))
    if op == "spherical_expansion_fwd":  # its frames are constants of the gradient
        assert bool(slope.isfinite())
        return
    torch.testing.assert_close(slope, change / (2 * h), rtol=1e-5, atol=1e-7)


class Doubled(TorchFunctionMode):
    """Doubles the first argument of our operators."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        ours = isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
        return func(*((2 * args[0], *args[1:]) if ours else args), **(kwargs or {}))


@pytest.mark.parametrize(
    "around",
    [
        contextlib.nullcontext,
        functools.partial(saved_tensors_hooks, lambda t: t.clone(), lambda t: t),
        Doubled,
        torch.inference_mode,
    ],
    ids=["plain", "hooks", "mode", "inference"],
)
def test_calls_past_the_dispatcher(kernel, around):
    """`_library.forward` gives what the operator gives, whoever looks on."""
    for op in LOSSES:
        same_past_the_dispatcher(kernel, op, around)


def same_past_the_dispatcher(kernel, op, around):
    known = calls.arguments(op, kernel, torch.float64)
    name = next(name for name in calls.differentiable(op) if known[name] is not None)
    namespace, operation = _backend.namespaces[kernel.name], op.removesuffix("_fwd")

    def outcome(operator):
        leaf = known[name].clone().requires_grad_()
        with around():
            found = operator(*(known | {name: leaf}).values())
        found = found if isinstance(found, tuple) else (found,)
        if not found[0].requires_grad:
            return found
        return *found, *torch.autograd.grad(found[0].sum(), leaf)

    direct = outcome(lambda *xs: _library.forward(namespace, operation)(*xs))
    for a, b in zip(direct, outcome(getattr(kernel.operators, op)), strict=True):
        assert torch.equal(a, b)
    assert direct[0].requires_grad == (around is not torch.inference_mode)


@pytest.mark.parametrize("op", LOSSES)
def test_reverse_of_torch_func(kernel, op):
    f, xs = function(op, kernel)
    expected = gradients(f, xs)
    every = tuple(range(len(xs)))
    for got in (
        torch.func.grad(f, every)(*xs),
        torch.func.vjp(f, *xs)[1](torch.ones((), dtype=xs[0].dtype, device=kernel.device)),
    ):
        for a, b in zip(got, expected, strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(torch.func.jacrev(f)(*xs), expected[0])


@pytest.mark.parametrize("op", LOSSES)
def test_vmap_of_grad(kernel, op):
    f, xs = function(op, kernel)
    first = lambda x: f(x, *xs[1:])  # noqa: E731
    batch = torch.stack([xs[0], 1.25 * xs[0]])
    expected = torch.stack([gradients(f, [x, *xs[1:]])[0] for x in batch])
    assert torch.equal(torch.vmap(torch.func.grad(first))(batch), expected)
    assert torch.equal(torch.func.grad(lambda b: torch.vmap(first)(b).sum())(batch), expected)


def backward_twice(f, xs, first, second):
    leaves = [x.clone().requires_grad_() for x in xs]
    (gradient,) = torch.autograd.grad(f(*leaves), leaves[first], create_graph=True)
    torch.autograd.grad(gradient.sum(), leaves[second])


# Of the gradient by argument `first` the derivative by argument `second`.
SECOND = {
    "backward": backward_twice,
    "grad of grad": lambda f, xs, first, second: torch.func.grad(
        lambda *ys: torch.func.grad(f, first)(*ys).sum(), second
    )(*xs),
    "jacrev of jacrev": lambda f, xs, first, second: torch.func.jacrev(torch.func.jacrev(f, first), second)(*xs),
}


@pytest.mark.parametrize("way", SECOND)
@pytest.mark.parametrize("op", LOSSES)
def test_second_derivatives_raise(kernel, op, way):
    f, xs = function(op, kernel)
    for first, second in itertools.product(range(len(xs)), repeat=2):
        with pytest.raises(
            RuntimeError, match=f"{op[:-4]}: the gradient cannot be differentiated again; .*{REFERENCE}"
        ):
            SECOND[way](f, xs, first, second)


@pytest.fixture(scope="module")
def linear():
    """An operator whose gradient does not depend on its argument, so that its backward is told of none."""
    texts = {
        "doubled_fwd": "Tensor x (M,) floating\n-> Tensor out (M,) like x",
        "doubled_bwd": """
Tensor grad_out (M,) floating; gradient of out
-> Tensor grad_x (M,) like grad_out; gradient of x""",
    }
    made = {name: _contract.Operator.of(name, text) for name, text in texts.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, operator in made.items():
            patch.setitem(_contract.OPERATORS, name, operator)
        patch.setattr(_library, "SCHEMAS", {name: operator.schema for name, operator in made.items()})
        if "dmlkernels_linear" not in _library._libraries:  # a process defines a namespace once
            _library._define("dmlkernels_linear")
            for name in made:
                _library.implement("dmlkernels_linear", name, lambda x: 2 * x, "cpu")
        yield torch.ops.dmlkernels_linear.doubled_fwd


@pytest.mark.parametrize("way", SECOND)
def test_second_derivatives_of_what_is_linear_raise(linear, way):
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.func.grad(lambda x: linear(x).sum())(x), torch.full_like(x, 2))
    with pytest.raises(RuntimeError, match=f"doubled: the gradient cannot be differentiated again; .*{REFERENCE}"):
        SECOND[way](lambda x: linear(x).sum(), [x], 0, 0)


def test_a_gradient_with_a_graph_can_be_changed_in_place():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.contrastive_loss(x, torch.arange(6) // 2), x, create_graph=True)
    before = gradient.detach().clone()
    assert torch.equal(gradient.mul_(2).detach(), 2 * before)


def dual(f, x):
    with forward_ad.dual_level():
        f(forward_ad.make_dual(x, x))


FORWARD = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "linearize": lambda f, x: torch.func.linearize(f, x),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "jacfwd of grad": lambda f, x: torch.func.jacfwd(torch.func.grad(f))(x),
    "jvp of vjp": lambda f, x: torch.func.jvp(torch.func.vjp(f, x)[1], (f(x),), (f(x),)),
    "grad of jvp": lambda f, x: torch.func.grad(lambda y: torch.func.jvp(f, (y,), (x,))[1])(x),
    "dual": dual,
    "dual without grad": torch.no_grad()(dual),
    "dual that requires grad": lambda f, x: dual(f, x.clone().requires_grad_()),
}


@pytest.mark.parametrize("way", FORWARD)
@pytest.mark.parametrize("op", LOSSES)
def test_forward_mode_raises(kernel, op, way):
    f, xs = function(op, kernel)
    for k, x in enumerate(xs):
        with pytest.raises(RuntimeError, match=f"{op[:-4]}: there is no forward-mode derivative .*{REFERENCE}"):
            FORWARD[way](lambda y, k=k: f(*xs[:k], y, *xs[k + 1 :]), x)


@pytest.mark.parametrize("op", calls.BACKWARDS)
def test_forward_mode_of_a_backward_raises(kernel, op):
    known = calls.arguments(op, kernel)
    for name in calls.tensors(known):
        with pytest.raises(RuntimeError, match=f"{op[:-4]}: there is no forward-mode derivative .*{REFERENCE}"):
            dual(lambda x, name=name: getattr(kernel.operators, op)(**known | {name: x}), known[name])


def test_what_is_drawn_has_no_derivative(kernel):
    known = calls.arguments("distance_weighted_fwd", kernel)
    draw = lambda x: kernel.operators.distance_weighted_fwd(**known | {"embeddings": x})  # noqa: E731
    index, tangent = torch.func.jvp(draw, (known["embeddings"],), (known["embeddings"],))
    assert index.dtype == tangent.dtype == torch.int64
    assert not tangent.any()


@pytest.mark.parametrize("name", ["supcon_loss", "multi_similarity_loss", "ranked_list_loss", "coding_rate_reduction"])
def test_the_reference_has_every_mode(name):
    """What the sentence promises: forward mode is the gradient along the direction."""
    generator = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 24, 16, generator=generator, dtype=torch.float64)
    f = lambda x: getattr(F, name)(x, torch.arange(24) // 4)  # noqa: E731
    with use_backend("reference"):
        _, slope = torch.func.jvp(f, (x,), (v,))
        torch.testing.assert_close(slope, (torch.func.grad(f)(x) * v).sum())
        torch.testing.assert_close(torch.func.jacfwd(f)(x), torch.func.grad(f)(x))
        assert bool(slope != 0)


SENTENCES = rf"{REFERENCE}|dmlkernels\.use_backend\('auto'\)"


def result_or_sentence(function, *arguments):
    try:
        return function(*arguments), ""
    except RuntimeError as error:
        return None, str(error)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.function is not None])
def test_every_loss_has_every_mode_or_says_so(name):
    """Of the gradient: along a direction, of a batch, as a row of a Jacobian."""
    generator = torch.Generator().manual_seed(3)
    x, v, proxies, u = torch.randn(4, 12, 6, generator=generator, dtype=torch.float64)
    loss, y = getattr(F, str(ROWS[name].function)), torch.arange(12) // 3
    takes = inspect.signature(loss).parameters
    for sample, backend in itertools.product(({}, *ROWS[name].samples), ("native", "reference")):
        options = {k: o for k, o in sample.items() if k in takes}
        if options.get("negative") == "distance_weighted":
            options["uniforms"] = u[:, :2].sigmoid()
        if "centers_per_class" in takes:
            options["centers_per_class"] = 3
        own = [proxies[: 4 * options.get("centers_per_class", 1)]] if ROWS[name].proxies else []
        f = functools.partial(lambda own, options, x: loss(x, y, *own, **options).sum(), own, options)
        with use_backend(backend):
            gradient = torch.func.grad(f)
            results = {
                "jacrev": (result_or_sentence(torch.func.jacrev(f), x), gradient(x)),
                "vmap": (
                    result_or_sentence(torch.func.vmap(gradient), torch.stack([x, 2 * x])),
                    torch.stack([gradient(x), gradient(2 * x)]),
                ),
                "jvp": (result_or_sentence(torch.func.jvp, f, (x,), (v,)), (f(x), (gradient(x) * v).sum())),
            }
        for mode, ((got, sentence), right) in results.items():
            if sentence:
                assert re.search(SENTENCES, sentence), (mode, sample, backend, sentence)
            else:
                torch.testing.assert_close(got, right, msg=f"{mode} {sample} {backend}")
        refused = {mode for mode, ((_, sentence), _) in results.items() if sentence}
        assert refused == {"jvp"} if backend == "native" else refused <= {"vmap"}
