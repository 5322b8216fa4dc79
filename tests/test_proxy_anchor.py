"""proxy_anchor: values, gradients of embeddings and proxies, the contract of an operator, and the module."""

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
from dmlkernels.testing import INTEGER_DTYPES, KINDS, assert_matches, evaluate, make_pairs

FLOATS = [torch.float64, torch.float32]
FLOAT_IDS = ["float64", "float32"]

OPTIONS = {
    "default": {},
    "soft": {"alpha": 4.0, "margin": 0.3},
    "sharp": {"alpha": 64.0, "margin": 0.0},
    "negative_margin": {"alpha": 10.0, "margin": -0.2},
    "unnormalized": {"alpha": 0.5, "margin": 1.0, "normalize": False},
}


class Problem:
    def __init__(self, m, c, d, dtype=torch.float32, seed=0, device="cpu", kind="random", missing=False):
        """With `missing`, every third class has no embedding."""
        pairs = make_pairs(kind, m, d=d, classes=c, dtype=dtype, seed=seed, device=device)
        self.embeddings, self.labels = pairs.embeddings, pairs.labels.clamp(max=max(c - 1, 0))
        if missing:
            self.labels = self.labels - (self.labels % 3 == 2).long()
        generator = torch.Generator().manual_seed(seed + 1)
        self.proxies = torch.randn(c, d, dtype=torch.float64, generator=generator).to(dtype).to(device)

    @property
    def tensors(self):
        return [self.embeddings, self.proxies]

    def function(self, **options):
        return lambda x, p: F.proxy_anchor_loss(x, self.labels, p, **options)


def match(problem, options=None, **rule):
    """Its weights are softmax weights of exponents up to α (1 + δ), or α times the largest product."""
    options = options or {}
    alpha, margin = options.get("alpha", 32.0), options.get("margin", 0.1)
    normalize = options.get("normalize", True)
    rule = {"normalize": normalize, "exponent": max(1.0, alpha * (1 + abs(margin))), "max_quiet": 1.0, **rule}
    return assert_matches(problem.function(**options), problem.tensors, **rule)


def by_loops(x, y, p, alpha=32.0, margin=0.1, normalize=True):
    """Loss, gradients of the rows of x and p: the definition over float64 numbers."""
    lengths = [np.sqrt((t * t).sum(1)) if normalize else np.ones(len(t)) for t in (x, p)]
    f, g = (t / np.where(n > 0, n, 1)[:, None] for t, n in zip((x, p), lengths))
    classes, present = len(p), sorted(set(y.tolist()))
    loss, grad_f, grad_g = 0.0, np.zeros_like(f), np.zeros_like(g)
    for c in range(classes):
        for sign, rows, count in (
            (-1, [i for i in range(len(f)) if y[i] == c], len(present)),
            (1, [i for i in range(len(f)) if y[i] != c], classes),
        ):
            weights = {i: math.exp(sign * alpha * (f[i] @ g[c] + sign * margin)) for i in rows}
            total = 1 + sum(weights.values())
            loss += math.log(total) / count
            for i, w in weights.items():
                slope = sign * alpha * w / total / count
                grad_f[i] += slope * g[c]
                grad_g[c] += slope * f[i]
    if normalize:
        for grad, unit, n in ((grad_f, f, lengths[0]), (grad_g, g, lengths[1])):
            grad -= (grad * unit).sum(1, keepdims=True) * unit
            grad /= np.where(n > 0, n, np.inf)[:, None]
    return loss, grad_f, grad_g


# Values and gradients against loops over the formula.


@pytest.mark.parametrize("m, c", [(1, 1), (1, 4), (9, 1), (12, 5), (5, 12)])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_against_loops(backend, device, name, missing, m, c):
    problem = Problem(m, c, 6, torch.float64, 1, device, "zero_rows" if m > 3 else "random", missing)
    outcome = evaluate(problem.function(**OPTIONS[name]), problem.tensors, torch.tensor(1.5, device=device))
    x, y, p = (t.cpu().numpy() for t in (problem.embeddings, problem.labels, problem.proxies))
    loss, grad_x, grad_p = by_loops(x, y, p, **OPTIONS[name])
    np.testing.assert_allclose(outcome.value.cpu(), loss, rtol=1e-12)
    np.testing.assert_allclose(outcome.grads[0].cpu(), 1.5 * grad_x, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(outcome.grads[1].cpu(), 1.5 * grad_p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("alpha, margin", [(32.0, 0.1), (64.0, 0.2), (8.0, 0.0)])
@pytest.mark.parametrize("m, c", [(60, 12), (20, 50)])
def test_agrees_with_pytorch_metric_learning(backend, device, m, c, alpha, margin, dtype):
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    problem = Problem(m, c, 16, dtype, seed=2, device=device)
    theirs = peer.ProxyAnchorLoss(c, 16, margin=margin, alpha=alpha).to(device)
    theirs.proxies.data.copy_(problem.proxies)

    def spelled(x, p):
        return torch.func.functional_call(theirs, {"proxies": p}, (x, problem.labels))

    got = evaluate(problem.function(alpha=alpha, margin=margin), problem.tensors)
    assert_close(got, evaluate(spelled, problem.tensors), factor=256 * alpha)
    torch.testing.assert_close(
        losses.ProxyAnchorLoss(c, 16).alpha, float(peer.ProxyAnchorLoss(c, 16).alpha), rtol=0, atol=0
    )


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kernel, device, dtype, kind, missing):
    match(Problem(130, 20, 16, dtype, 3, device, kind, missing))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("m, c", [(140, 30), (30, 140), (140, 133)])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(kernel, device, name, m, c, dtype):
    match(Problem(m, c, 12, dtype, 4, device), OPTIONS[name])


@pytest.mark.parametrize("m", [1, 2, 15, 17, 63, 127, 128, 129, 257])
@pytest.mark.parametrize("c", [1, 3, 128, 129])
def test_tiles(kernel, device, m, c):
    match(Problem(m, c, 8, torch.float32, 5, device))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [2, 3, 8, 15, 17, 33, 64, 130, 512, 1024])
def test_widths(kernel, device, d, dtype):
    match(Problem(60, 11, d, dtype, 6, device))


def test_many_proxies(kernel, device):
    match(Problem(50, 3000, 16, torch.float32, 7, device))


@pytest.mark.parametrize("alpha", [200.0, 1000.0])
def test_large_exponents(kernel, device, alpha):
    """e^{α (s + δ)} alone would overflow."""
    truth = match(Problem(70, 20, 12, torch.float32, 8, device), {"alpha": alpha, "margin": 0.2})
    assert bool(truth.value.isfinite())


def test_small_terms_are_exact(backend, device):
    """A proxy on its only embedding: log(1 + e^{-α (1 - δ)}) is e^{-28.8}, not log 1."""
    x = torch.eye(2, 8, device=device)
    apart = F.proxy_anchor_loss(x[:1], torch.zeros(1, dtype=torch.int64, device=device), x[:1])
    assert float(apart) == pytest.approx(math.exp(-28.8), rel=1e-5)


# Gradients by differences.


@pytest.mark.parametrize("m, c", [(6, 3), (4, 7)])
@pytest.mark.parametrize("name", ["soft", "negative_margin", "unnormalized"])
def test_gradcheck(backend, device, name, m, c):
    problem = Problem(m, c, 5, torch.float64, 9, device)
    leaves = [t.requires_grad_() for t in problem.tensors]
    assert torch.autograd.gradcheck(problem.function(**OPTIONS[name]), leaves)


# Properties.


def test_row_order_does_not_matter(backend, device):
    problem = Problem(140, 30, 8, torch.float64, 10, device)
    order = torch.randperm(140, generator=torch.Generator().manual_seed(1)).to(device)
    names = torch.randperm(30, generator=torch.Generator().manual_seed(2)).to(device)
    a = evaluate(problem.function(), problem.tensors)
    problem.labels = names.argsort()[problem.labels[order]]
    b = evaluate(problem.function(), [problem.embeddings[order], problem.proxies[names]])
    a.grads = [a.grads[0][order], a.grads[1][names]]
    assert_close(b, a, factor=4096)


def test_absent_classes_only_push(backend, device):
    """Proxies without positives take part in the negative term; the positive term averages over the others."""
    problem = Problem(40, 12, 8, torch.float64, 11, device)
    extra = torch.randn(5, 8, dtype=torch.float64, device=device)
    more = torch.cat([problem.proxies, extra])
    s = F.pairwise_similarity(problem.embeddings, more)
    negative = torch.stack([torch.log1p((32 * (s[problem.labels != c, c] + 0.1)).exp().sum()) for c in range(17)])
    few = F.proxy_anchor_loss(problem.embeddings, problem.labels, problem.proxies)
    many = F.proxy_anchor_loss(problem.embeddings, problem.labels, more)
    torch.testing.assert_close(many - few, negative.mean() - negative[:12].mean())


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_label_dtypes(backend, device, label_dtype):
    problem = Problem(60, 2 if label_dtype == torch.bool else 9, 8, device=device)
    got = F.proxy_anchor_loss(problem.embeddings, problem.labels.to(label_dtype), problem.proxies)
    assert torch.equal(got, problem.function()(*problem.tensors))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_rows_does_not_matter(backend, device, scale):
    problem = Problem(40, 9, 8, torch.float64, 12, device)
    a = evaluate(problem.function(), problem.tensors)
    b = evaluate(problem.function(), [problem.embeddings * scale, problem.proxies])
    b.grads[0] = b.grads[0] * scale
    assert_close(b, a, factor=4096)


# Edges, strides, dtypes.


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


# opcheck, torch.compile, vmap, double backward, determinism.


def forward_arguments(problem):
    return (problem.embeddings, problem.labels, problem.proxies, 0.1, 8.0, True, "ieee")


@pytest.mark.parametrize("view", ["plain", "transposed"])
def test_opcheck(kernel, device, view):
    problem = Problem(9, 4, 5, device=device)
    if view == "transposed":
        problem.embeddings, problem.proxies = (VIEWS[view](t) for t in problem.tensors)
        problem.labels = strided(problem.labels)
    value, stats = kernel.operators.proxy_anchor_fwd(*forward_arguments(problem))
    backward = (torch.ones_like(value), *problem.tensors[:1], problem.labels, problem.proxies, stats, 0.1, 8.0, True)
    contract.check_operator(kernel.operators.proxy_anchor_bwd, (*backward, "ieee"))
    for t in problem.tensors:
        t.requires_grad_()
    contract.check_operator(kernel.operators.proxy_anchor_fwd, forward_arguments(problem))


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
        with pytest.raises(RuntimeError, match=r"labels must be in \[0, C\) with C=9, got 9"):
            compiled(problem.embeddings, problem.labels + 1, problem.proxies)


def test_compile_with_inductor(kernel, device):
    problem = Problem(40, 9, 8, device=device)
    torch.compiler.reset()
    compiled = torch.compile(problem.function(), fullgraph=True)
    assert_close(evaluate(compiled, problem.tensors), evaluate(problem.function(), problem.tensors))


def test_vmap(kernel, device):
    problems = [Problem(30, 9, 8, seed=s, device=device) for s in range(3)]
    run = kernel.operators.proxy_anchor_fwd
    x, p = (torch.stack([q.tensors[k] for q in problems]) for k in (0, 1))
    y = torch.stack([q.labels for q in problems])
    got = torch.vmap(lambda x, y, p: run(x, y, p, 0.1, 8.0, True, "ieee")[0])(x, y, p)
    assert torch.equal(got, torch.stack([run(*forward_arguments(q))[0] for q in problems]))


def test_double_backward(kernel, device):
    problem = Problem(20, 6, 8, device=device)
    contract.check_no_double_backward(lambda x: problem.function()(x, problem.proxies), problem.embeddings)
    contract.check_no_double_backward(lambda p: problem.function()(problem.embeddings, p), problem.proxies)


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
            ({"labels": y + 1}, op + "labels must be in [0, C) with C=5, got 5"),
            ({"labels": y - 1}, op + "labels must be in [0, C) with C=5, got -1"),
            ({"proxies": p[:0]}, op + "labels must be in [0, C) with C=0, got 12 labels"),
            ({"proxies": p[0]}, op + "proxies must be (C, D), got (6,)"),
            ({"proxies": p[:, :5]}, op + "proxies must be (C, D) with D=6, got (5, 5)"),
        ],
    )


def test_direct_calls_are_checked(kernel, device):
    problem = Problem(12, 5, 6, device=device)
    x, y, p = problem.embeddings, problem.labels, problem.proxies
    fwd, bwd = kernel.operators.proxy_anchor_fwd, kernel.operators.proxy_anchor_bwd
    names = [a.name for a in fwd.default._schema.arguments]
    good = dict(zip(names, forward_arguments(problem), strict=True))
    bad = {
        "vector": {"embeddings": x[0]},
        "integers": {"embeddings": x.long()},
        "short labels": {"labels": y[:11]},
        "int32 labels": {"labels": y.int()},
        "column labels": {"labels": y[:, None]},
        "narrow proxies": {"proxies": p[:, :5].contiguous()},
        "proxies of another dtype": {"proxies": p.double()},
        "one proxy": {"proxies": p[0]},
    }
    outside = {
        "label too large": {"labels": y + 1},
        "label too small": {"labels": y - 1},
        "no proxies": {"proxies": p[:0]},
    }
    contract.check_rejects(fwd, good, bad)
    contract.check_bad_values(kernel.asynchronous, fwd, good, outside)
    value, stats = fwd(*good.values())
    outside["no proxies"]["proxy_stats"] = stats[:, :0]
    bad |= {
        "grad of another dtype": {"grad_loss": value.double()},
        "grad of a row": {"grad_loss": value[None]},
        "fewer statistics": {"proxy_stats": stats[:1]},
        "short statistics": {"proxy_stats": stats[:, :4]},
        "statistics of another dtype": {"proxy_stats": stats.double()},
    }
    good = {"grad_loss": value, **good, "proxy_stats": stats}
    contract.check_rejects(bwd, good, bad)
    contract.check_bad_values(kernel.asynchronous, bwd, good, outside)


# ProxyAnchorLoss.


@pytest.mark.parametrize("options", [{}, {"margin": 0.3, "alpha": 8.0}, {"normalize": False, "alpha": 0.5}])
def test_module_is_the_function(backend, device, options):
    problem = Problem(40, 9, 8, seed=18, device=device)
    module = losses.ProxyAnchorLoss(9, 8, **options).to(device)

    def through_module(x, p):
        return torch.func.functional_call(module, {"proxies": p}, (x, problem.labels))

    got = evaluate(through_module, problem.tensors)
    assert_identical(got, evaluate(problem.function(**options), problem.tensors))
    assert [name for name, _ in module.named_parameters()] == ["proxies"]


def test_statistics(backend, device):
    problem = Problem(40, 9, 8, torch.float64, 19, device, missing=True)
    module = losses.ProxyAnchorLoss(9, 8).double().to(device)
    loss = module(problem.embeddings, problem.labels)
    stats = module.last_stats
    assert set(stats) == {"pos_term", "neg_term"}
    assert not any(v.requires_grad or v.ndim for v in stats.values())
    torch.testing.assert_close(stats["pos_term"] + stats["neg_term"], loss.detach())
    s = F.pairwise_similarity(problem.embeddings, module.proxies)
    negative = [torch.log1p((32 * (s[problem.labels != c, c] + 0.1)).exp().sum()) for c in range(9)]
    torch.testing.assert_close(stats["neg_term"], torch.stack(negative).mean().detach())


def test_proxies_start_like_the_peer():
    """kaiming_normal_ with fan_out, on the same random numbers."""
    peer = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(0)
    ours = losses.ProxyAnchorLoss(30, 16)
    torch.manual_seed(0)
    assert torch.equal(ours.proxies, peer.ProxyAnchorLoss(30, 16).proxies)


@pytest.mark.large
def test_module_trains(backend, device):
    """A few steps bring embeddings to their proxies."""
    problem = Problem(60, 6, 8, seed=20, device=device)
    torch.manual_seed(1)
    module = losses.ProxyAnchorLoss(6, 8).to(device)
    x = problem.embeddings.requires_grad_()
    optimiser = torch.optim.Adam([x, *module.parameters()], lr=0.05)
    for _ in range(120):
        optimiser.zero_grad()
        module(x, problem.labels).backward()
        optimiser.step()
    s = F.pairwise_similarity(x, module.proxies)
    assert float((s.argmax(1) == problem.labels).float().mean()) == 1


def test_module_refuses_pairs(backend, device):
    problem = Problem(12, 5, 6, device=device)
    module = losses.ProxyAnchorLoss(5, 6).to(device)
    x, y = problem.embeddings, problem.labels
    words = "must be None, since this loss is not one of pairs"
    for name, value in (("ref_emb", x), ("ref_labels", y), ("ids", y), ("ref_ids", y), ("indices_tuple", (y, y, y))):
        with pytest.raises(ValueError, match=f"ProxyAnchorLoss: {name} {words}, got"):
            module(x, y, **{name: value})
    with pytest.raises(ValueError, match=r"ProxyAnchorLoss: labels must be in \[0, C\) with C=5, got 6"):
        module(x, y + 2)
    assert repr(module) == "ProxyAnchorLoss(num_classes=5, embedding_size=6, margin=0.1, alpha=32.0, normalize=True)"
