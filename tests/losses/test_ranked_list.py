"""ranked_list: values and gradients, labels, boundaries, numerics, and the properties that follow from the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import brute_force
from support.contract import assert_close, thinned
from support.pairs import tensors
from support.ranked_list import OPTIONS, boundaries, draw, loss, match, statistics

from dmlkernels import functional as F
from dmlkernels import use_backend
from dmlkernels.testing import (
    BAND,
    INTEGER_DTYPES,
    KINDS,
    LABEL_KINDS,
    Pairs,
    assert_matches,
    evaluate,
    make_pairs,
    near_boundary,
)

# Values and gradients against loops over the formula.


@pytest.mark.parametrize("extra", thinned(["plain", "ids", "ignore_index"], "ids", "ignore_index"))
@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_brute_force(backend, device, name, n, extra):
    options = OPTIONS[name]
    kind = {"plain": "random", "ids": "duplicates", "ignore_index": "zero_rows"}[extra]
    pairs = draw(kind, 12, n, 5, options, classes=3, dtype=torch.float64, seed=5, device=device)
    more = {}
    if extra == "ids":
        more = {"ids": torch.arange(12) // 2}
        more |= {} if n is None else {"ref_ids": torch.arange(n) // 3}
    elif extra == "ignore_index":
        more = {"ignore_index": 1}
    incoming = np.linspace(-1, 2, 12)
    known = {"pos_weight": 0.5, "neg_weight": 0.5} if options.get("form") != "cvpr" else {"pos_weight": 1.0}
    known |= {"neg_weight": options.get("neg_weight", 0.5 if options.get("form") != "cvpr" else 1.0)}
    known["pos_weight"] = 1 - known["neg_weight"] if options.get("form") != "cvpr" else 1.0
    formula = {k: v for k, v in options.items() if k not in ("form", "normalize", "neg_weight")}
    formula |= {"alpha": boundaries(options)[0], "margin": options.get("margin", 0.4), **known}
    numbers = [None if t is None else t.cpu().numpy() for t in pairs]
    problem = brute_force.Problem(*numbers, **more, normalize=options.get("normalize", True))
    rows, grad_x, grad_g, expected = brute_force.ranked_list(problem, incoming, **formula)

    more = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in more.items()}
    outcome = evaluate(loss(pairs, **options, **more), tensors(pairs), torch.tensor(incoming, device=device))
    # A dozen terms of size 1 in float64.
    close = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(outcome.value.cpu(), rows, **close)
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad_x, **close)
    if n is not None:
        np.testing.assert_allclose(outcome.grads[1].cpu(), grad_g, **close)
    ignore = {"ignore_index": more.pop("ignore_index")} if "ignore_index" in more else {}
    found = statistics(pairs, {**options, **ignore}, **more)
    np.testing.assert_allclose(
        found, [expected[k] for k in ("count_pos", "count_neg", "dist_pos", "dist_neg")], **close
    )


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("n", [None, 141], ids=["self", "reference"])
@pytest.mark.parametrize("kind", thinned(KINDS, "random", "duplicates"))
def test_every_dtype(kernel, device, dtype, kind, n):
    match(draw(kind, 130, n, dtype=dtype, seed=1, device=device))


@pytest.mark.parametrize("dtype", thinned([torch.float64, torch.float32], torch.float32), ids=["float64", "float32"])
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(kernel, device, name, n, dtype):
    options = OPTIONS[name]
    match(draw("random", 135, n, 12, options, dtype=dtype, seed=2, device=device), options)


@pytest.mark.parametrize("n", [None, 133], ids=["self", "reference"])
@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("labels", thinned(LABEL_KINDS, "ragged", "wide"))
def test_every_labelling(kernel, device, labels, positive, n):
    options = {"positive": positive, "margin": 0.8, "alpha": 1.2, "pos_temperature": 2.0}
    match(draw("random", 200, n, 8, options, classes=11, labels=labels, seed=3, device=device), options)


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("n", [None, 50], ids=["self", "reference"])
def test_label_dtypes(backend, device, label_dtype, n):
    classes = 2 if label_dtype == torch.bool else 60
    pairs = make_pairs("random", 140, n, 8, classes, label_dtype=label_dtype, device=device)
    if label_dtype.is_signed:
        pairs = pairs._replace(labels=pairs.labels - 30)
        pairs = pairs if n is None else pairs._replace(ref_labels=pairs.ref_labels - 30)
    as_int64 = pairs._replace(labels=pairs.labels.long(), ref_labels=None if n is None else pairs.ref_labels.long())
    assert torch.equal(loss(pairs)(*tensors(pairs)), loss(as_int64)(*tensors(pairs)))


@pytest.mark.parametrize("n", [None, 133], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["every_positive", "pml_every_positive", "pml", "easy", "unnormalized"])
def test_every_option_with_copies(kernel, device, name, n):
    """Coincident positives are members where α − m is negative, coincident negatives always; not with "pml"."""
    options = OPTIONS[name]
    match(draw("duplicates", 150, n, 8, options, classes=3, seed=3, device=device), options)


@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["default", "easy", "pml", "unnormalized"])
def test_statistics_of_many_tiles(kernel, device, name, n):
    options = OPTIONS[name]
    pairs = draw("random", 300, n, 8, options, seed=3, device=device)
    found = statistics(pairs, options)
    with use_backend("reference"):
        exact = Pairs(*(t if t is None or not t.is_floating_point() else t.double() for t in pairs))
        expected = statistics(exact, options)
    assert found[:2] == expected[:2]
    assert found[2:] == pytest.approx(expected[2:], rel=1e-5)


@pytest.mark.parametrize("kind", ["random", "clustered", "collapsed", "zero_rows", "large_norms"])
@pytest.mark.parametrize("d", thinned([64, 129], 64))
def test_promised_accuracy(kernel, device, kind, d):
    """The documented bound itself, with nothing added for the error of plain PyTorch."""
    pairs = draw(kind, 257, d=d, classes=32, seed=4, device=device)
    got = loss(pairs)(pairs.embeddings).double()
    with use_backend("reference"):
        true = loss(pairs)(pairs.embeddings.double())
    assert bool(((got - true).abs() <= 1e-5 * true.abs() + 2e-6 * 1.2).all())
    assert float((got.mean() - true.mean()).abs()) <= 1e-5 * float(true.mean()) + 1e-7 * 1.2


GRADCHECKED = [name for name in OPTIONS if OPTIONS[name].get("weight_grad") and "query" not in name]
GRADCHECKED += ["plain_means", "unnormalized_means", "cvpr_means"]
MEANS: dict[str, dict[str, Any]] = {
    "plain_means": {},
    "unnormalized_means": OPTIONS["unnormalized"],
    "cvpr_means": {"form": "cvpr"},
}


@pytest.mark.heavy
@pytest.mark.parametrize("n", [None, 7], ids=["self", "reference"])
@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradcheck(backend, device, name, n):
    """Where the gradient is that of the loss: differentiated weights, or plain means."""
    options = OPTIONS[name] if name not in MEANS else {**MEANS[name], "pos_temperature": 0.0, "neg_temperature": 0.0}
    pairs = draw("random", 9, n, 4, options, classes=3, dtype=torch.float64, seed=6, device=device)
    leaves = [t.clone().requires_grad_() for t in tensors(pairs)]
    assert torch.autograd.gradcheck(loss(pairs, **options), leaves)


# Boundaries.


def test_strict_boundaries(backend, device):
    """Exactly representable distances on a line: α − m = 1 and α = 2 themselves are outside of both sets."""
    x = torch.tensor([[0.0], [1.0], [-2.0], [2.0], [-1.0], [3.0], [0.0]], dtype=torch.float32, device=device)
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 2], device=device)
    options = {"alpha": 2.0, "margin": 1.0, "normalize": False, "neg_temperature": 0.0}
    pairs = Pairs(x, labels, None, None)
    # Of the queries 0 … 6, in this order: 1, 1, 1, 1, 0, 2, 0 positives and 2, 2, 1, 2, 2, 1, 2 negatives.
    assert statistics(pairs, options)[:2] == [6, 12]
    # Row 0: the positive at 3 costs 2; the negatives at 1 and 0 cost 1 and 2.
    assert loss(pairs, **options)(x)[0].item() == pytest.approx(0.5 * 2 + 0.5 * 1.5)


def test_zero_distance_negative(backend, device):
    """A negative on top of the query is in N*: it costs α and has no direction to push."""
    x = torch.tensor([[0.6, 0.8, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]], device=device)
    outcome = evaluate(
        lambda e: F.ranked_list_loss(e, torch.arange(3, device=device), reduction="none", neg_temperature=0.0), [x]
    )
    assert outcome.value.tolist() == pytest.approx([0.6, 0.6, 0.0])
    assert torch.equal(outcome.grads[0], torch.zeros_like(x))


@pytest.mark.parametrize("kind", ["duplicates", "orthogonal"])
def test_coincident_rows_get_no_gradient(backend, device, kind):
    pairs = make_pairs(kind, 150, d=8, classes=150, labels="distinct", device=device)
    outcome = evaluate(loss(pairs, alpha=0.1, margin=0.05), [pairs.embeddings])
    d = torch.cdist(pairs.embeddings, pairs.embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    twins = (d == 0).sum(1) > 1
    assert bool((outcome.value[twins] > 0.04).all())
    assert torch.equal(outcome.value[~twins], torch.zeros_like(outcome.value[~twins]))
    assert torch.equal(outcome.grads[0], torch.zeros_like(outcome.grads[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rows_that_normalise_alike_get_no_gradient(backend, device, dtype):
    """Multiples of a row differ by a rounding of their unit rows, whose direction means nothing."""
    x = torch.randn(70, 24, dtype=dtype, generator=torch.Generator().manual_seed(7)).to(device)
    scale = torch.linspace(0.3, 3.1, 70, dtype=dtype, device=device)[:, None]
    pairs = Pairs(torch.cat([x, x * scale]), torch.arange(140, device=device), None, None)
    outcome = evaluate(loss(pairs, alpha=0.2, margin=0.1), [pairs.embeddings])
    torch.testing.assert_close(outcome.value, torch.full_like(outcome.value, 0.1), rtol=0, atol=2e-6)
    assert torch.equal(outcome.grads[0], torch.zeros_like(pairs.embeddings))


@pytest.mark.parametrize("i", thinned([3, 60, 100], 60))
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("grad", ["full", "query"])
def test_a_pair_on_a_boundary(kernel, device, side, grad, n, i):
    """A pair is put within rounding of α or α − m: either answer is right for its row, the other rows are tight."""
    options = {"alpha": 1.2, "margin": 0.4, "grad": grad, "neg_temperature": 0.0}
    pairs = draw("random", 140, n, 8, options, seed=7)
    x, g = pairs.embeddings, pairs.embeddings if n is None else pairs.ref_emb
    y, h = pairs.labels, pairs.labels if n is None else pairs.ref_labels
    j = next(j for j in range(i + 1, 140) if (y[i] == h[j]) == (side == "positive"))
    a = torch.nn.functional.normalize(x[i].double(), dim=0)
    b = torch.nn.functional.normalize(g[j].double() - (g[j].double() @ a) * a, dim=0)
    angle = 2 * np.arcsin((0.8 if side == "positive" else 1.2) / 2)
    g[j] = (a * np.cos(angle) + b * np.sin(angle)).float()
    assert int(near_boundary(x, pairs.ref_emb, boundaries(options)).sum()) == (2 if n is None else 1)
    pairs = Pairs(*(None if t is None else t.to(device) for t in pairs))
    width = BAND * torch.finfo(torch.float32).eps
    shifted = [loss(pairs, **{**options, "alpha": 1.2 + s * width}) for s in (-1, 1)]
    assert_matches(loss(pairs, **options), tensors(pairs), scale=1.2, shifted=shifted)


# Numerics.


@pytest.mark.parametrize("gap", thinned([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], 1e-1, 1e-3, 1e-6))
@pytest.mark.parametrize("n", [None, 70], ids=["self", "reference"])
def test_near_duplicates(kernel, device, gap, n):
    """Pairs at distance `gap`, the only active ones: their violation is α − gap, their direction must survive."""
    pairs = make_pairs("random", 140, n, 24, labels="distinct", seed=8, device=device)
    twin = torch.nn.functional.normalize(torch.randn(70, 24, generator=torch.Generator().manual_seed(9)), dim=1)
    first = pairs.embeddings[:70]
    second = first + gap * torch.linalg.vector_norm(first, dim=1, keepdim=True) * twin.to(device)
    if n is None:
        pairs = pairs._replace(embeddings=torch.cat([first, second]))
    else:
        pairs = pairs._replace(ref_emb=second, ref_labels=-1 - pairs.ref_labels)
    # eps over the gap is what a direction may be off by: 1 % at 1e-5, a tenth at 1e-6, eight times that in the rule. In
    # reference mode half of the queries have no twin, and no gradient.
    quiet = {1e-5: 0.5, 1e-6: 1.0}.get(gap, 0.1 if n is None else 0.5)
    # A distance of 0.1 is the least that comes of a product, and is off by roundings of the rows' norms, not of alpha.
    match(pairs, {"alpha": 0.2, "margin": 0.1, "neg_temperature": 5.0}, max_quiet=quiet, scale=1.0)


@pytest.mark.parametrize("temperature", [200.0, -80.0])
@pytest.mark.parametrize("sets", ["both", "positives", "negatives"])
@pytest.mark.parametrize("kind", thinned(["random", "collapsed", "duplicates"], "collapsed"))
@pytest.mark.parametrize("weight_grad", [False, True])
def test_large_temperatures(kernel, device, kind, temperature, sets, weight_grad):
    """e^{T v} alone would overflow, or underflow for every member of a set."""
    options = {"pos_temperature": 0.0 if sets == "negatives" else temperature, "weight_grad": weight_grad}
    options |= {"neg_temperature": 0.0 if sets == "positives" else temperature}
    pairs = draw(kind, 140, d=6, seed=10, device=device)
    truth = match(pairs, options, max_quiet=1.0)
    assert bool(truth.value.isfinite().all())
    exact = draw(kind, 140, d=6, seed=10, dtype=torch.float64, device=device)
    match(exact, options, max_quiet=0.3, exponent=abs(temperature) * 1.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("temperature", [3.0, -3.0])
def test_large_distances(kernel, device, dtype, temperature):
    """Without normalisation distances, and so exponents, are unbounded."""
    if dtype == torch.float32 and kernel.product_rounding:
        pytest.skip("how numpy rounds the interpreter's products, e to the 600th makes visible")
    options = {"normalize": False, "alpha": 300.0, "margin": 250.0, "neg_temperature": temperature}
    options |= {"pos_temperature": temperature}
    pairs = draw("random", 140, d=16, options=options, seed=11, dtype=dtype, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings * 40)
    match(pairs, options, max_quiet=0.3, exponent=900.0 if dtype == torch.float64 else 1.0)


# Properties.


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["default", "weight_grad", "query", "easy"])
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
def test_row_order_does_not_matter(backend, device, name, n, dtype):
    options = OPTIONS[name]
    pairs = draw("random", 260, n, 8, options, labels="sorted", dtype=dtype, seed=12, device=device)
    order = torch.randperm(260, generator=torch.Generator().manual_seed(1)).to(device)
    mixed = pairs._replace(embeddings=pairs.embeddings[order], labels=pairs.labels[order])
    weights = torch.linspace(-1, 1, 260, dtype=dtype, device=device)
    a = evaluate(loss(pairs, **options), tensors(pairs), weights)
    b = evaluate(loss(mixed, **options), tensors(mixed), weights[order])
    a.value, a.grads[0] = a.value[order], a.grads[0][order]
    assert_close(b, a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["default", "weight_grad", "query", "easy", "unnormalized"])
@pytest.mark.parametrize("m", [20, 130, 257])
def test_self_mode_is_reference_mode_with_ids(backend, device, name, m, dtype):
    options = OPTIONS[name]
    pairs = draw("random", m, None, 8, options, dtype=dtype, seed=13, device=device)
    ids = torch.arange(m, device=device)
    own = evaluate(loss(pairs, **options), [pairs.embeddings])
    other = pairs._replace(ref_emb=pairs.embeddings, ref_labels=pairs.labels)
    apart = evaluate(loss(other, **options, ids=ids, ref_ids=ids), tensors(other))
    apart.grads = [apart.grads[0] + apart.grads[1]]
    assert_close(own, apart)


@pytest.mark.parametrize("poison", [False, True], ids=["plain", "nan_in_ignored_row"])
@pytest.mark.parametrize("name", ["default", "pml", "easy"])
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
def test_ignore_index_is_removal(backend, device, name, n, poison):
    options = {**OPTIONS[name], "reduction": "mean"}
    pairs = draw("random", 150, n, 8, options, dtype=torch.float64, labels="negative", seed=14, device=device)
    kept = pairs.labels != -1
    ref_kept = None if n is None else pairs.ref_labels != -1
    fewer = Pairs(pairs.embeddings[kept], pairs.labels[kept], None, None)
    if n is not None:
        fewer = fewer._replace(ref_emb=pairs.ref_emb[ref_kept], ref_labels=pairs.ref_labels[ref_kept])
    if poison:
        for rows, keep in ((pairs.embeddings, kept), (pairs.ref_emb, ref_kept)):
            if rows is not None:
                rows[~keep] = torch.nan
    whole = evaluate(loss(pairs, **options, ignore_index=-1, check_finite=True), tensors(pairs))
    for k, keep in enumerate([kept] if n is None else [kept, ref_kept]):
        assert torch.equal(whole.grads[k][~keep], torch.zeros_like(whole.grads[k][~keep]))
        whole.grads[k] = whole.grads[k][keep]
    assert_close(whole, evaluate(loss(fewer, **options), tensors(fewer)))
    rows = loss(pairs, **{**options, "reduction": "none"}, ignore_index=-1)(*tensors(pairs))
    assert torch.equal(rows[~kept], torch.zeros_like(rows[~kept]))


@pytest.mark.parametrize("n", [None, 30], ids=["self", "reference"])
def test_equal_ids_leave_nothing(backend, device, n):
    pairs = make_pairs("random", 140, n, 8, device=device)
    ids = {"ids": torch.full((140,), 5, device=device)}
    ids |= {} if n is None else {"ref_ids": torch.full((n,), 5, device=device)}
    outcome = evaluate(loss(pairs, **ids), tensors(pairs))
    for t in (outcome.value, *outcome.grads):
        assert torch.equal(t, torch.zeros_like(t))


def test_query_gradient_is_the_query_end_of_the_full_one(kernel, device):
    pairs = draw("random", 140, 131, 8, dtype=torch.float64, seed=15, device=device)
    full, query = (evaluate(loss(pairs, grad=grad), tensors(pairs)) for grad in ("full", "query"))
    assert torch.equal(full.value, query.value)
    assert torch.equal(full.grads[0], query.grads[0])
    assert torch.equal(query.grads[1], torch.zeros_like(query.grads[1]))


@pytest.mark.parametrize("m", [0, 1, 5, 140])
def test_reductions(backend, device, m):
    pairs = make_pairs("random", m, d=8, classes=3, dtype=torch.float64, device=device)
    rows, total, mean = (loss(pairs, reduction=r)(pairs.embeddings) for r in ("none", "sum", "mean"))
    assert rows.shape == (m,)
    assert torch.equal(total, rows.sum())
    assert torch.equal(mean, rows.sum() / max(m, 1))


@pytest.mark.heavy
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 140),
    n=st.none() | st.integers(1, 140),
    d=st.integers(5, 40),
    classes=st.integers(1, 20),
    kind=st.sampled_from(KINDS),
    labels=st.sampled_from(LABEL_KINDS),
    name=st.sampled_from(sorted(OPTIONS)),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 999),
)
def test_any_problem(kernel, device, m, n, d, classes, kind, labels, name, dtype, seed):
    options = OPTIONS[name]
    pairs = draw(kind, m, n, d, options, classes=classes, labels=labels, dtype=dtype, seed=seed, device=device)
    match(pairs, options, max_quiet=1.0)
