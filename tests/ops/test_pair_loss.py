"""pair_loss: row statistics and their gradients, against loops over the formula and against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from support import settings
from support.contract import thinned
from support.pair_loss import OPTIONS, Case, bounds_for, call, differentiable, has_moment
from support.pairs import tensors
from torch import Tensor

from dmlkernels import use_backend
from dmlkernels.ops.pair_loss import Options, Side
from dmlkernels.testing import KINDS, Pairs, assert_matches, evaluate, make_pairs

BOUNDED = ("softmax", "circle", "nca", "contrastive", "cosine_hinge", "hinge_negatives", "softplus_positives", "query")


def nothing(options: Options) -> list[float]:
    """Statistics of a query without pairs."""
    stats = [-math.inf if side is not None and side.term == "exp" else 0.0 for side in (options.pos, options.neg)]
    return [*stats, -math.inf, -math.inf, *[0.0] * 6]


def log_sum_exp(scores: list[float]) -> float:
    top = max(scores, default=0.0)
    return top + math.log(sum(math.exp(s - top) for s in scores)) if scores else -math.inf


def side_by_loops(side: Side | None, values: list[float], bound: float | None) -> list[float]:
    """stat, log_sum, sum, members, slope of one side of one row."""
    if side is None:
        return [0.0, -math.inf, 0.0, 0.0, 0.0]
    x_of = {v: side.scale * (v - (side.base if bound is None else bound)) for v in values}
    cost = [v for v in values if x_of[v] > 0]
    if side.term == "hinge":
        return [sum(x_of[v] for v in cost), -math.inf, sum(cost), float(len(values)), float(len(cost))]
    if side.term == "softplus":
        stat, slope = (
            sum(f(x_of[v]) for v in values)
            for f in (lambda x: math.log1p(math.exp(x)), lambda x: 1 / (1 + math.exp(-x)))
        )
        return [stat, -math.inf, sum(values), float(len(values)), slope]
    if side.term == "moment":
        log_sum = log_sum_exp([side.temperature * x_of[v] for v in cost])
        stat = sum(math.exp(side.temperature * x_of[v] - log_sum) * x_of[v] for v in cost)
        return [stat, log_sum, sum(cost), float(len(values)), float(len(cost))]
    kept = values if bound is None else cost
    ramp = {v: max(side.ramp * (v - side.origin), 0) if side.ramp else 1.0 for v in kept}
    stat = log_sum_exp([side.scale * ramp[v] * (v - side.base) for v in kept])
    return [stat, -math.inf, sum(kept), float(len(values)), float(len(kept))]


def by_loops(case: Case) -> Tensor:
    """(10, M) in the order of Statistics."""
    (x, labels, g, ref_labels), rows, own = case.pairs, case.rows, case.pairs.ref_emb is None
    g, h = (x, labels) if own else (g, ref_labels)
    if case.rows.get("normalize", True):
        x, g = (torch.nn.functional.normalize(t, dim=1, eps=1e-12) for t in (x, g))
    ids, ref_ids = rows.get("ids"), rows.get("ids") if own else rows.get("ref_ids")
    out = []
    for i in range(len(x)):
        values: dict[bool, list[float]] = {True: [], False: []}
        for j in range(len(g)):
            ignored = rows.get("ignore_index") in (int(labels[i]), int(h[j]))
            if (own and i == j) or ignored or (ids is not None and ids[i] == ref_ids[j]):
                continue
            squared = float((x[i] - g[j]).square().sum())
            if case.options.apart and squared == 0:
                continue
            value = {"similarity": float(x[i] @ g[j]), "distance": math.sqrt(squared), "squared": squared}
            values[bool(labels[i] == h[j])].append(value[case.options.value])
        sides = [
            side_by_loops(side, values[k == 0], None if case.bounds is None else float(case.bounds[k, i]))
            for k, side in enumerate((case.options.pos, case.options.neg))
        ]
        out.append([v for of_both in zip(*sides) for v in of_both])
    return torch.tensor(out, dtype=torch.float64).T


@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index", "bounds", "unnormalized"])
@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_brute_force(backend, device, name, n, extra):
    options = OPTIONS[name]
    if extra == "bounds" and has_moment(options):
        pytest.skip("a moment takes no bounds")
    pairs = make_pairs("random", 13, n, 5, 3, torch.float64, seed=4)
    pairs.embeddings[5] = pairs.embeddings[2]
    rows: dict = {}
    if extra == "ids":
        rows = {"ids": torch.arange(13) // 2} | ({} if n is None else {"ref_ids": torch.arange(n) // 3})
    elif extra == "ignore_index":
        rows = {"ignore_index": 1}
    elif extra == "unnormalized":
        rows = {"normalize": False}
    case = Case(pairs, options, bounds_for(options, 13) if extra == "bounds" else None, rows)
    expected = by_loops(case)
    moved = case._replace(
        pairs=Pairs(*(None if t is None else t.to(device) for t in pairs)),
        bounds=None if case.bounds is None else case.bounds.to(device),
        rows={k: v.to(device) if isinstance(v, Tensor) else v for k, v in rows.items()},
    )
    got = torch.stack(list(call(moved, *tensors(moved.pairs)))).cpu()
    ignored = torch.zeros(13, dtype=torch.bool) if extra != "ignore_index" else pairs.labels == 1
    torch.testing.assert_close(got[:, ~ignored], expected[:, ~ignored], rtol=1e-11, atol=1e-12)
    empty = torch.tensor(nothing(options), dtype=torch.float64)
    assert torch.equal(got[:, ignored], empty[:, None].expand(10, int(ignored.sum())))


@pytest.mark.heavy
@pytest.mark.parametrize("bounded", [False, True], ids=["base", "bounds"])
@pytest.mark.parametrize("n", [None, 5], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(OPTIONS, "softmax", "circle", "contrastive", "softplus_positives"))
def test_gradcheck(kernel, device, name, n, bounded):
    options = OPTIONS[name]
    if bounded and has_moment(options):
        pytest.skip("a moment takes no bounds")
    pairs = make_pairs("random", 7, n, 3, 2, torch.float64, seed=1, device=device)
    case = Case(pairs, options, bounds_for(options, 7).to(device) if bounded else None, {})
    # Where bounds mine, their gradient is zero, and differences agree only where nothing crosses a bound.
    # The ramp of circle loss and the weights of "ranked" are constants of the gradient, and "query" lacks half of it.
    if name not in ("circle", "ranked", "cosine_moment") and (options.grad == "full" or n is not None):
        leaves = [t.clone().requires_grad_(options.grad == "full" or t is pairs.embeddings) for t in tensors(pairs)]
        torch.autograd.gradcheck(differentiable(case), leaves, atol=1e-6)
    if not bounded or "exp" in {side.term for side in (options.pos, options.neg) if side}:
        return
    bounds = case.bounds.clone().requires_grad_()

    def of_bounds(b: Tensor) -> Tensor:
        return torch.stack(call(case, pairs.embeddings, pairs.ref_emb, b)[:2])

    torch.autograd.gradcheck(of_bounds, [bounds], atol=1e-6)


@pytest.mark.parametrize("n", [None, 150], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(OPTIONS, "multi_similarity", "contrastive", "lifted", "softplus_positives"))
def test_gradients_of_the_reference(kernel, device, name, n):
    """In float64: several tiles, bounds of every row, the ramp as a constant."""
    options = OPTIONS[name]
    pairs = make_pairs("random", 140, n, 9, 12, torch.float64, device=device)
    bounds = bounds_for(options, 140).to(device) if name in BOUNDED else None
    # Of the steep ones two factors of a gradient are as steep as their scores of up to 300.
    steep = 600.0 if name in ("steep", "ranked_steep") else 200.0
    assert_matches(differentiable(Case(pairs, options, bounds, {})), tensors(pairs), scale=200.0, exponent=steep)


@pytest.mark.parametrize("normalize", [True, False])
def test_sides_of_two_terms(kernel, device, normalize):
    """Which a kernel computes one after the other: what the second one finds is what the first one left."""
    for dtype, n in ((torch.float32, None), (torch.bfloat16, 70)):
        pairs = make_pairs("random", 140, n, 9, 12, dtype, normalize=normalize, avoid=[0.5], device=device)
        case = Case(pairs, OPTIONS["hinge_and_exp"], None, {"normalize": normalize})
        assert_matches(differentiable(case), tensors(pairs), scale=200.0, exponent=200.0, normalize=normalize)


@pytest.mark.parametrize("name", ["contrastive", "softmax"])
def test_nothing_is_above_a_bound_that_is_nan(backend, device, name):
    """A loss that must be NaN then has it from the bound itself."""
    pairs = make_pairs("random", 20, None, 6, 4, torch.float64, device=device)
    bounds = bounds_for(OPTIONS[name], 20).to(device)
    whole = call(Case(pairs, OPTIONS[name], bounds, {}), pairs.embeddings)
    bounds[:, 3] = torch.nan
    found = call(Case(pairs, OPTIONS[name], bounds, {}), pairs.embeddings)
    others = torch.arange(20, device=device) != 3
    for a, b in zip(found, whole, strict=True):
        torch.testing.assert_close(a[others], b[others], rtol=1e-12, atol=1e-12)
    nothing = -torch.inf if name == "softmax" else 0.0
    assert [float(found.pos[3]), float(found.neg[3]), float(found.pos_slope[3]), float(found.neg_sum[3])] == [
        nothing,
        nothing,
        0,
        0,
    ]


@pytest.mark.parametrize(("m", "normalize"), [(300, True), (200, False)])
def test_tiles_in_any_order(kernel, device, m, normalize):
    """Odd and even numbers of tiles, where their sums may be added in any order, and mirrored tiles at once."""
    pairs = make_pairs("random", m, None, 9, 3, device=device)
    case = Case(pairs, OPTIONS["contrastive"], None, {"normalize": normalize})
    with settings.deterministic(False):
        assert_matches(differentiable(case), tensors(pairs), scale=float(m), normalize=normalize, max_quiet=0.3)
        found = call(case, pairs.embeddings)
        with use_backend("reference"):
            exact = call(case, pairs.embeddings.double())
        for count, true in zip(found[6:], exact[6:], strict=True):
            # A pair at a margin may fall on either side of it.
            assert float((count - true).abs().max()) <= 1


PLAIN = (
    *("softmax", "lifted", "nca", "contrastive", "cosine_hinge", "squared_hinge", "ranked", "softplus", "circle"),
    *("hinge_and_exp", "softplus_and_moment", "exp_and_softplus"),
)


@pytest.mark.parametrize("deterministic", [False, True], ids=["mirrored", "by_rows"])
@pytest.mark.parametrize("data", ["unit", "with_zeros", "unnormalized", "short", "exactly_unit", "near"])
@pytest.mark.parametrize("name", thinned(PLAIN, "ranked", "lifted", "nca", "contrastive"))
@pytest.mark.parametrize(
    "dtype", thinned([torch.float32, torch.bfloat16, torch.float16], torch.float32, torch.float16), ids=str
)
def test_tiles_of_negatives(kernel, device, dtype, name, data, deterministic):
    """Of which only totals are asked for: a kernel may add up a pair's part in the row of either end."""
    if (name, data) == ("circle", "unnormalized"):
        pytest.skip("scores of thousands, whose exponentials float32 cannot judge")
    options = OPTIONS[name]._replace(neg_totals=True)
    options = options._replace(weight_grad=False, grad="full")
    hinges = [s.base for s in (options.pos, options.neg) if s.term in ("hinge", "moment")]
    normalize = data not in ("unnormalized", "short", "exactly_unit")
    avoid = hinges if options.value == "distance" else ()
    x, labels, _, _ = make_pairs(
        "random", 400, None, 6, 12, dtype, labels="sorted", avoid=avoid, normalize=normalize, device=device
    )
    if data == "with_zeros":
        x[::90] = 0
    elif data == "near":
        x[300] = x[20]
    elif data == "short":  # nowhere near each other if all norms were 1
        x *= 0.5 / x.norm(dim=1, keepdim=True)
    elif data == "exactly_unit":  # up to rounding, and near each other
        x[:, 0], x[:, 1:] = 1.0, x[:, 1:] * 5e-5
    case = Case(Pairs(x, labels, None, None), options, None, {"normalize": normalize})

    def function(x: Tensor) -> Tensor:
        s = call(case, x)
        totals = torch.stack([s.neg_sum, s.neg_slope], 1).sum(0) / len(x)
        kept = (s.pos, s.neg, s.pos_log_sum, s.neg_log_sum, s.pos_sum, s.pos_slope, s.neg_members)
        return torch.cat([*(torch.where(t.isinf(), 0, t) for t in kept), totals])

    pull = 2e4 if data == "exactly_unit" else 1.0  # one over a distance
    with settings.deterministic(deterministic):
        assert_matches(function, [x], scale=400.0, exponent=200.0, normalize=normalize, pull=pull, max_quiet=1.0)


def test_norms_that_are_not_one(kernel, device):
    """Of rows of 16 bits those that are 1 need not be read."""
    test_tiles_of_negatives(kernel, device, torch.float16, "contrastive", "short", True)


@pytest.mark.parametrize("m, n, d", thinned([(140, None, 129), (130, 300, 300), (260, None, 256)], (140, None, 129)))
@pytest.mark.parametrize("dtype", thinned([torch.float32, torch.bfloat16, torch.float16], torch.bfloat16), ids=str)
def test_wide_rows(kernel, device, dtype, m, n, d):
    """Whose gradient takes more than 128 columns of a product."""
    pairs = make_pairs("random", m, n, d, 12, dtype, device=device)
    function = differentiable(Case(pairs, OPTIONS["softmax"], None, {}))
    assert_matches(function, tensors(pairs), scale=130.0, exponent=60.0, max_quiet=1.0)


def test_totals_have_no_gradient(backend, device):
    pairs = make_pairs("random", 20, None, 6, 4, device=device)
    x = pairs.embeddings.requires_grad_()
    for name in ("ranked", "contrastive", "softmax"):
        case = Case(pairs, OPTIONS[name]._replace(neg_totals=True), None, {})
        found = call(case, x)
        assert not found.neg_sum.requires_grad
        assert found.pos_sum.requires_grad


@pytest.mark.parametrize("kind", thinned(KINDS, "random", "duplicates"))
@pytest.mark.parametrize("name", thinned(OPTIONS, "softmax", "contrastive"))
def test_data(kernel, device, name, kind):
    options = OPTIONS[name]
    hinges = [
        s.base
        for s in (options.pos, options.neg)
        if s and s.term in ("hinge", "moment") and options.value == "distance" and s.base > 0
    ]
    pairs = make_pairs(kind, 130, None, 16, 12, torch.float32, avoid=hinges, device=device)
    steepest = max(
        max(abs(s.scale) * (2.4 if s.ramp else 1.0), abs(s.temperature)) for s in (options.pos, options.neg) if s
    )
    shifted = []
    if options.value != "distance" and any(s.term in ("hinge", "moment") for s in (options.pos, options.neg) if s):
        band = 4e-6
        for move in (-band, band):
            sides = [None if s is None else s._replace(base=s.base + move) for s in (options.pos, options.neg)]
            moved = options._replace(pos=sides[0], neg=sides[1])
            shifted.append(differentiable(Case(pairs, moved, None, {})))
    # A statistic is a sum over up to 130 pairs, or as large as a score.
    assert_matches(
        differentiable(Case(pairs, options, None, {})),
        tensors(pairs),
        scale=max(130.0, 4 * steepest),
        exponent=max(4 * steepest, 1.0),
        max_quiet=1.0,
        shifted=shifted,
    )


@pytest.mark.parametrize("name", thinned(["softmax", "contrastive", "softplus", "ranked"], "softmax", "ranked"))
def test_dtypes(kernel, device, dtype, name):
    options = OPTIONS[name]
    hinges = [s.base for s in (options.pos, options.neg) if s.term in ("hinge", "moment")]
    pairs = make_pairs("random", 130, 70, 16, 12, dtype, avoid=hinges, device=device)
    function = differentiable(Case(pairs, options, None, {}))
    assert_matches(function, tensors(pairs), scale=130.0, exponent=60.0, max_quiet=1.0)


@pytest.mark.parametrize("m, n, d", thinned(
    [(0, None, 3), (1, None, 3), (0, 5, 3), (5, 0, 3), (1, 300, 1), (129, None, 4), (257, 1, 33), (260, None, 5)],
    (0, None, 3), (5, 0, 3), (129, None, 4),
))  # fmt: skip
@pytest.mark.parametrize("name", ["softmax", "contrastive", "softplus_positives", "ranked"])
def test_sizes(kernel, device, name, m, n, d):
    pairs = make_pairs("random", m, n, d, 4, torch.float64, device=device)
    case = Case(pairs, OPTIONS[name], None, {})
    assert_matches(differentiable(case), tensors(pairs), scale=100.0, exponent=100.0)


@pytest.mark.parametrize("labels", thinned(["one_class", "distinct", "sorted", "ragged", "wide"], "ragged"))
@pytest.mark.parametrize(("name", "exponent"), [("softmax", 100.0), ("contrastive", 100.0), ("ranked_steep", 600.0)])
def test_labels(kernel, device, name, exponent, labels):
    pairs = make_pairs("random", 140, None, 6, 9, torch.float64, labels=labels, device=device)
    case = Case(pairs, OPTIONS[name], None, {})
    assert_matches(differentiable(case), tensors(pairs), scale=100.0, exponent=exponent)


@pytest.mark.parametrize("where", ["query", "gallery"])
@pytest.mark.parametrize("n", [None, 20], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["softmax", "contrastive", "ranked"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_rows(backend, device, name, n, where, bad):
    pairs = make_pairs("random", 12, n, 4, 3, device=device)
    rows = pairs.embeddings if where == "query" or n is None else pairs.ref_emb
    rows[3, 1] = bad
    outcome = evaluate(differentiable(Case(pairs, OPTIONS[name], None, {})), tensors(pairs))
    reached = torch.ones(12, dtype=torch.bool) if where == "gallery" or n is None else torch.arange(12) == 3
    assert torch.equal(outcome.value.isnan().cpu(), reached)
    kept = Case(pairs, OPTIONS[name], None, {"ignore_index": int((pairs.labels if n is None else pairs.ref_labels)[3])})
    if where == "gallery" or n is None:
        assert not evaluate(differentiable(kept), tensors(pairs)).value.isnan().any()


@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("name", ["softmax", "contrastive", "softplus", "ranked"])
def test_one_side_is_that_side_of_both(backend, device, name, side):
    pairs = make_pairs("random", 140, None, 6, 12, torch.float64, device=device)
    options = OPTIONS[name]
    both = call(Case(pairs, options, None, {}), pairs.embeddings)
    other = {"neg": None} if side == "positive" else {"pos": None}
    one = call(Case(pairs, options._replace(**other), None, {}), pairs.embeddings)
    none = nothing(options._replace(**other))
    for k in range(10):
        mine = (k % 2 == 0) == (side == "positive")
        expected = both[k] if mine else torch.full_like(one[k], none[k])
        torch.testing.assert_close(one[k], expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("scale", [60.0, 74.0, 200.0])
def test_gradients_of_a_mean_over_many_rows(kernel, device, scale):
    """Small gradients are as accurate as large ones: no factor of them leaves the numbers of float32."""
    pairs = make_pairs("random", 40, None, 8, 40, labels="distinct", device=device)
    x = torch.cat([pairs.embeddings, pairs.embeddings + 0.01]).requires_grad_()
    case = Case(Pairs(x, torch.arange(80, device=device), None, None), OPTIONS["exp_negatives"], None, {})
    options = case.options._replace(neg=Side("exp", scale))
    stats = call(case._replace(options=options), x).neg
    large, small = (torch.autograd.grad(stats, x, torch.full_like(stats, g), retain_graph=True)[0] for g in (1.0, 1e-7))
    torch.testing.assert_close(small * 1e7, large, rtol=1e-4, atol=1e-4 * float(large.abs().max()))
    assert large.abs().amax(1).min() > 0


@pytest.mark.large
def test_sums_of_many_pairs(kernel, device):
    """In float32 too, a row's sum is not rounded as often as it has pairs."""
    n = 16384
    pairs = make_pairs("random", n, None, 8, n, labels="distinct", device=device)
    case = Case(pairs, Options("similarity", None, Side("hinge", 1.0, -1.5)), None, {})
    single, double = (call(case, pairs.embeddings.to(dtype)).neg for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=2e-6, atol=0)


@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
@pytest.mark.parametrize("bad", [-1, 3])
def test_labels_outside_the_classes(backend, device, n, bad):
    pairs = make_pairs("random", 12, n, 4, 3, device=device)
    case = Case(pairs, OPTIONS["softmax"]._replace(classes=3), None, {})
    assert torch.isfinite(call(case, *tensors(pairs)).neg).all()
    name = "labels" if n is None else "ref_labels"
    getattr(pairs, name)[5] = bad
    if not backend.asynchronous:
        with pytest.raises(ValueError, match=rf"^pair_loss: {name} must be in \[0, C\) with C=3, got {bad}$"):
            call(case, *tensors(pairs))
        return
    outcome = evaluate(differentiable(case), tensors(pairs))
    assert all(t.isnan().all() for t in (outcome.value, *outcome.grads))
