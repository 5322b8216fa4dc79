"""triplet: every positive with all or with semi-hard negatives: values, gradients, shapes, ties, non-finite rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import brute_force
from support.contract import VIEWS, assert_close, assert_identical, strided, thinned
from support.pairs import tensors
from support.triplet import OPTIONS, by_hand, draw, found, loss, match

import dmlkernels
from dmlkernels import _checks, losses, use_backend
from dmlkernels._contract import TILE
from dmlkernels.reference.pairwise import distance
from dmlkernels.reference.pairwise import rows as unit_rows
from dmlkernels.testing import Pairs, evaluate, make_pairs, noise_like

# Values and gradients.


@pytest.mark.parametrize("extra", thinned(["plain", "ids", "ignore_index"], "ids", "ignore_index"))
@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
@pytest.mark.parametrize("name", OPTIONS)
def test_brute_force(backend, device, name, n, extra):
    options = OPTIONS[name]
    pairs = make_pairs("random", 12, n, 5, 3, torch.float64, seed=5, device=device)
    more = {}
    if extra == "ids":
        more = {"ids": torch.arange(12) // 2}
        more |= {} if n is None else {"ref_ids": torch.arange(n) // 3}
    elif extra == "ignore_index":
        more = {"ignore_index": 1}
    numbers = [None if t is None else t.cpu().numpy() for t in pairs]
    problem = brute_force.Problem(*numbers, **more, normalize=options.get("normalize", True))
    incoming = np.linspace(-1, 2, 12)
    sums, nonzero, count, grads = by_hand(problem, incoming, **options)
    assert sum(nonzero) > 0
    more = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in more.items()}
    rows = found(pairs, *tensors(pairs), **options, **more)
    assert rows.nonzero.tolist() == nonzero
    assert rows.count.tolist() == count
    outcome = evaluate(loss(pairs, **options, **more), tensors(pairs), torch.tensor(incoming, device=device))
    # A dozen distances of size 1, or 10 without normalising, in each of a few dozen triplets.
    close = {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(outcome.value.cpu(), sums, **close)
    for got, expected in zip(outcome.grads, grads, strict=False):
        np.testing.assert_allclose(got.cpu(), expected, **close)


@pytest.mark.parametrize("n", [None, 70], ids=["self", "reference"])
@pytest.mark.parametrize("name", thinned(OPTIONS, "all", "all_soft", "semihard"))
def test_every_dtype(kernel, device, dtype, name, n):
    options = OPTIONS[name]
    match(draw("random", 60, n, 12, options, classes=14, dtype=dtype, seed=1, device=device), options, max_quiet=0.2)


def test_weights_are_finer_than_rows_of_16_bits(kernel, device):
    """The large pulls of few positives cancel: bfloat16 weights would show beside the rounding of the gradient."""
    pairs = make_pairs("random", 60, None, 12, 14, torch.bfloat16, seed=1, device=device)
    function = loss(pairs, **OPTIONS["all_soft"])
    incoming = noise_like(pairs.labels.double(), 2)
    with use_backend("reference"):
        (true,) = evaluate(function, [pairs.embeddings.double()], incoming).grads
    (got,) = evaluate(function, [pairs.embeddings], incoming.float()).grads
    stored = (true.bfloat16().double() - true).norm()
    assert float((got.double() - true).norm()) < 1.2 * float(stored)


@pytest.mark.parametrize(
    "kind", thinned(["clustered", "collapsed", "duplicates", "orthogonal", "large_norms"], "collapsed")
)
@pytest.mark.parametrize("name", ["all_soft", "semihard_soft"])
def test_kinds(kernel, device, kind, name):
    """With a softplus no hinge jumps; float64, where the choice of a negative does not hang on rounding."""
    match(make_pairs(kind, 60, None, 12, 14, torch.float64, seed=2, device=device), OPTIONS[name], max_quiet=1.0)


@pytest.mark.parametrize(
    "m, n", thinned([(1, 1), (2, 2), (1, 300), (300, 1), (129, 2), (127, 257)], (1, 300), (129, 2))
)
@pytest.mark.parametrize("name", ["all", "semihard"])
def test_rows_and_gallery(kernel, device, m, n, name):
    options = OPTIONS[name]
    pairs = make_pairs("random", m, n, 6, 5, torch.float64, seed=3, device=device)
    match(pairs, options, max_quiet=0.3)


@pytest.mark.heavy
@pytest.mark.parametrize("m", thinned([1, 2, 3, 17, 33, 127, 128, 129, 257, 300], 3, 129))
@pytest.mark.parametrize("name", ["all", "all_soft", "semihard"])
def test_rows(kernel, device, m, name):
    pairs = make_pairs("random", m, d=7, classes=max(2, m // 6), dtype=torch.float64, seed=4, device=device)
    match(pairs, OPTIONS[name], max_quiet=0.3)


@pytest.mark.parametrize("d", thinned([3, 8, 17, 64, 130], 17, 130))
@pytest.mark.parametrize("name", ["all", "semihard"])
def test_widths(kernel, device, d, name):
    pairs = draw("random", 60, None, d, OPTIONS[name], classes=12, seed=5, device=device)
    match(pairs, OPTIONS[name], max_quiet=0.2)


@pytest.mark.heavy
@pytest.mark.parametrize("labels", thinned(["ragged", "wide", "negative", "sorted"], "ragged"))
@pytest.mark.parametrize("name", ["all", "semihard"])
def test_labels(kernel, device, labels, name):
    """Classes of every size: one of half of the rows, and many of one row."""
    pairs = make_pairs("random", 140, None, 8, 20, torch.float64, labels=labels, seed=6, device=device)
    match(pairs, OPTIONS[name], max_quiet=0.5)


@pytest.mark.full
@pytest.mark.large
@pytest.mark.parametrize("n", [None, 2500], ids=["self", "reference"])
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_more_positives_than_a_pass_takes(kernel, device, negative, n):
    """Two classes of 1150 rows, more than the distances that are in memory at a time; the others are single rows."""
    m = 2400
    pairs = make_pairs("random", m, n, 4, 2, torch.float64, labels="sorted", seed=7, device=device)
    labels = [y if y is None else torch.where(torch.arange(len(y), device=device) % 24 == 0, 5, y) for y in pairs[1::2]]
    pairs = Pairs(pairs.embeddings, labels[0], pairs.ref_emb, labels[1])
    some = torch.arange(0, m, 97, device=device)
    weights = torch.zeros(m, dtype=torch.float64, device=device)
    weights[some] = torch.linspace(-1, 2, len(some), dtype=torch.float64, device=device)
    outcome = evaluate(loss(pairs, negative=negative, margin=0.1), tensors(pairs), weights)

    def by_anchor(x, g=None):
        f = unit_rows(x, True)
        gallery, labels = (f, pairs.labels) if g is None else (unit_rows(g, True), pairs.ref_labels)
        sums = x.new_zeros(m)
        for i in some.tolist():
            d = distance(f[i : i + 1], gallery)[0]
            same = labels == pairs.labels[i]
            others = same if n is not None else same & (torch.arange(m, device=device) != i)
            gap = d[others][:, None] - d[~same][None, :]
            if negative == "semihard":
                gap = torch.where(gap < 0, gap, -torch.inf).amax(1)
            sums = sums.index_put((torch.tensor(i, device=device),), (gap + 0.1).clamp_min(0).sum())
        return sums

    expected = evaluate(by_anchor, tensors(pairs), weights)
    torch.testing.assert_close(outcome.value[some], expected.value[some], rtol=1e-11, atol=1e-11)
    for got, wanted in zip(outcome.grads, expected.grads, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


# Choices.


def test_ties_go_to_the_lowest_row(backend, device):
    """Two negatives at one distance: the anchor's gradient comes from the row that stands first."""
    x = torch.eye(5, dtype=torch.float64, device=device)
    x[1, 0] = 1.0
    y = torch.tensor([0, 0, 1, 2, 3], device=device)
    pairs = Pairs(x, y, None, None)
    weights = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64, device=device)
    grad = evaluate(loss(pairs, negative="semihard", margin=1.0), [x], weights).grads[0]
    assert grad[2].any()
    assert not grad[3:].any()


def test_semihard_is_strictly_farther(backend, device):
    """A negative at the distance of the positive is none, and a nearer one neither."""
    x = torch.eye(4, dtype=torch.float64, device=device)
    rows = found(Pairs(x, torch.tensor([0, 0, 1, 2], device=device), None, None), x, negative="semihard")
    assert rows.count.tolist() == [0, 0, 0, 0]
    x[3] *= -1  # unit rows: at √2 still
    x[3, 0] = -1.0
    rows = found(Pairs(x, torch.tensor([0, 0, 1, 2], device=device), None, None), x, negative="semihard")
    assert rows.count.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("n", [None, 40], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["all", "semihard_soft"])
def test_near_duplicates(kernel, device, name, n):
    """Positives 1e-3 apart: their distances are those of the difference form."""
    pairs = make_pairs("random", 40, n, 12, 8, torch.float64, labels="sorted", seed=9, device=device)
    centres = make_pairs("random", 8, None, 12, 8, torch.float64, seed=10, device=device).embeddings
    moved = [
        None if t is None else (centres[y] + 1e-3 * t).float() for t, y in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    match(Pairs(moved[0], pairs.labels, moved[1], pairs.ref_labels), {**OPTIONS[name], "margin": 1.2}, max_quiet=1.0)


def test_coincident_rows_pull_nowhere(backend, device):
    x = torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))[torch.arange(12) // 4]
    y = (torch.arange(12) // 2 % 2).to(device)
    outcome = evaluate(loss(Pairs(x.to(device), y, None, None), margin=0.5), [x.to(device)])
    assert bool(outcome.value.isfinite().all())
    assert bool(outcome.grads[0].isfinite().all())
    assert bool((outcome.value > 0).all())


# Nothing to do, or nothing to do it with.


@pytest.mark.parametrize("name", ["all", "all_soft", "semihard"])
@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (0, 0), (1, None)])
def test_nothing_to_compare(backend, device, m, n, name):
    pairs = make_pairs("random", m, n, 4, device=device)
    outcome = evaluate(loss(pairs, **OPTIONS[name]), tensors(pairs))
    assert torch.equal(outcome.value, torch.zeros(m, device=device))
    for grad, rows in zip(outcome.grads, tensors(pairs), strict=True):
        assert torch.equal(grad, torch.zeros_like(rows))


@pytest.mark.parametrize("labels", ["one_class", "distinct"])
@pytest.mark.parametrize("n", [None, 60], ids=["self", "reference"])
@pytest.mark.parametrize("name", ["all", "all_soft", "semihard"])
def test_without_a_triplet(backend, device, labels, n, name):
    pairs = make_pairs("random", 50, n, 6, labels=labels, device=device)
    if n is not None and labels == "distinct":
        pairs = pairs._replace(ref_labels=-1 - pairs.ref_labels)
    rows = found(pairs, *tensors(pairs), **OPTIONS[name])
    assert not rows.count.any()
    assert not rows.nonzero.any()
    outcome = evaluate(loss(pairs, **OPTIONS[name]), tensors(pairs))
    for t in (outcome.value, *outcome.grads):
        assert torch.equal(t, torch.zeros_like(t))


@pytest.mark.heavy
def test_inactive_tiles_are_marked(kernel, device):
    """Far classes cost nothing: no tile of their pairs is visited on the way back, and no row loses its gradient."""
    m = 2 * TILE + 20
    x = torch.randn(m, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = torch.arange(m) // 4
    far = 50.0 * (torch.arange(m) // TILE).double()[:, None] + x
    pairs = Pairs(far.to(device), y.to(device), None, None)
    options = {"normalize": False, "margin": 0.5}
    inputs = _checks.pair_inputs("triplet", *pairs[:2], normalize=False)
    *_, active = kernel.operators.triplet_fwd(*inputs, "all", 0.5, False, "ieee", True, False)
    assert active.shape == (3, 3)
    assert active.dtype == torch.uint8
    assert bool(active.diagonal().all())
    assert int(active.count_nonzero()) < 9
    match(pairs, options, max_quiet=0.5)


@pytest.mark.parametrize("name", ["all", "semihard"])
@pytest.mark.parametrize("where", ["self", "query", "gallery"])
def test_non_finite(backend, device, name, where):
    """A bad query spoils its own sum, a bad gallery row every sum; a row that ignore_index takes out spoils none."""
    pairs = make_pairs("random", 20, None if where == "self" else 30, 5, 4, device=device)
    (pairs.ref_emb if where == "gallery" else pairs.embeddings)[3, 1] = torch.nan
    outcome = evaluate(loss(pairs, **OPTIONS[name]), tensors(pairs))
    bad = outcome.value.isnan().nonzero()[:, 0].tolist()
    assert bad == ([3] if where == "query" else list(range(20)))
    assert bool(outcome.grads[0][bad].isnan().all())
    if where == "query":
        assert bool(outcome.grads[0][:3].isfinite().all())
    with pytest.raises((ValueError, RuntimeError), match="must be finite"):
        found(pairs, *tensors(pairs), **OPTIONS[name], check_finite=True)
    label = int((pairs.ref_labels if where == "gallery" else pairs.labels)[3])
    outcome = evaluate(loss(pairs, **OPTIONS[name], ignore_index=label), tensors(pairs))
    for t in (outcome.value, *outcome.grads):
        assert bool(t.isfinite().all())


@pytest.mark.parametrize("view", thinned(VIEWS, "transposed", "offset"))
@pytest.mark.parametrize("name", ["all", "semihard"])
def test_strided(kernel, device, view, name):
    pairs = make_pairs("random", 33, 21, 8, 5, device=device)
    seen = Pairs(*(VIEWS[view](t) if t.is_floating_point() else strided(t) for t in pairs))
    plain = evaluate(loss(pairs, **OPTIONS[name]), tensors(pairs))
    leaves = [t.detach().requires_grad_() for t in tensors(seen)]
    value = loss(seen, **OPTIONS[name])(*leaves)
    weights = dmlkernels.testing.noise_like(value, 2)
    assert torch.equal(value.detach(), plain.value)
    for got, expected in zip(torch.autograd.grad(value, leaves, weights), plain.grads, strict=True):
        assert torch.equal(got, expected)


# What the formula implies.


@pytest.mark.parametrize("name", ["all", "all_soft", "semihard"])
def test_a_gallery_of_the_same_rows_is_self_mode(backend, device, name):
    pairs = make_pairs("random", 40, None, 8, 6, torch.float64, seed=11, device=device)
    ids = torch.arange(40, device=device)
    x, y = pairs.embeddings, pairs.labels
    own = evaluate(loss(pairs, **OPTIONS[name]), [x])
    other = evaluate(loss(Pairs(x, y, x, y), **OPTIONS[name], ids=ids, ref_ids=ids), [x, x])
    other.grads = [other.grads[0] + other.grads[1]]
    assert_close(own, other)


@pytest.mark.parametrize("name", ["all", "semihard"])
def test_order_of_the_rows(backend, device, name):
    pairs = make_pairs("random", 40, None, 8, 6, torch.float64, seed=12, device=device)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(device)
    weights = torch.linspace(-1, 2, 40, dtype=torch.float64, device=device)
    one = evaluate(loss(pairs, **OPTIONS[name]), [pairs.embeddings], weights)
    moved = Pairs(pairs.embeddings[order], pairs.labels[order], None, None)
    other = evaluate(loss(moved, **OPTIONS[name]), [moved.embeddings], weights[order])
    one.value, one.grads = one.value[order], [one.grads[0][order]]
    assert_close(one, other)


@pytest.mark.parametrize("reduction", ["nonzero_mean", "mean", "sum"])
@pytest.mark.parametrize("negative", ["all", "semihard"])
def test_the_loss_reduces_the_sums(backend, device, negative, reduction):
    pairs = make_pairs("random", 40, 30, 8, 6, torch.float64, seed=13, device=device)
    module = losses.TripletMarginLoss(margin=0.1, negative=negative, reduction=reduction)
    value = module(pairs.embeddings, pairs.labels, None, pairs.ref_emb, pairs.ref_labels)
    rows = found(pairs, *tensors(pairs), negative=negative, margin=0.1)
    divisor = {"nonzero_mean": rows.nonzero.sum(), "mean": rows.count.sum(), "sum": 1}[reduction]
    torch.testing.assert_close(value, rows.loss_sum.sum() / divisor)
    assert int(module.last_stats["triplets"]) == int(rows.count.sum())
    assert int(module.last_stats["active_triplets"]) == int(rows.nonzero.sum())


@pytest.mark.heavy
def test_one_gradient_row_does_not_hide_another(kernel, device):
    """With the gradient of one anchor only, what it sends to its pairs is all there is."""
    pairs = make_pairs("random", 30, None, 8, 5, torch.float64, seed=14, device=device)
    total = evaluate(loss(pairs), [pairs.embeddings], torch.ones(30, device=device, dtype=torch.float64))
    parts = [
        evaluate(loss(pairs), [pairs.embeddings], torch.eye(30, dtype=torch.float64, device=device)[i]).grads[0]
        for i in range(30)
    ]
    torch.testing.assert_close(sum(parts), total.grads[0], rtol=1e-10, atol=1e-11)
    assert_identical(
        total, evaluate(loss(pairs), [pairs.embeddings], torch.ones(30, device=device, dtype=torch.float64))
    )
