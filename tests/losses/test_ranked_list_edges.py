"""ranked_list: shapes, tiles, strides, one-sided gradients and non-finite rows."""

from __future__ import annotations

import pytest
import torch
from support.contract import VIEWS, assert_close, assert_identical, strided, thinned
from support.pairs import tensors
from support.ranked_list import OPTIONS, draw, loss, match

import dmlkernels
from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels._contract import TILE
from dmlkernels.testing import Pairs, assert_matches, evaluate, make_pairs

# Shapes. Labels are unsorted: a kernel that sorts them must put results back in place.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "m", thinned([1, 2, 3, 15, 17, 31, 33, 63, 65, 127, 128, 129, 130, 200, 257, 300], 1, 33, 128, 129, 257)
)
def test_rows(kernel, device, m, dtype):
    match(draw("random", m, d=6, classes=max(2, m // 9), seed=20, dtype=dtype, device=device))


@pytest.mark.parametrize(
    "m, n",
    thinned(
        [(1, 1), (1, 300), (300, 1), (2, 129), (129, 2), (128, 128), (127, 257), (257, 130)],
        (1, 1),
        (1, 300),
        (129, 2),
        (127, 257),
    ),
)
@pytest.mark.parametrize("name", ["default", "weight_grad", "query", "easy"])
def test_rows_and_gallery(kernel, device, m, n, name):
    match(draw("random", m, n, 6, OPTIONS[name], seed=21, device=device), OPTIONS[name], max_quiet=0.2)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@pytest.mark.parametrize("d", thinned([3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 100, 128, 130], 3, 17, 33, 130))
def test_widths(kernel, device, d, dtype):
    """From 3: on a circle directions do not move with the rows, so that float64 gives no measure of their rounding."""
    match(draw("random", 70, d=d, classes=5, seed=22, dtype=dtype, device=device))


@pytest.mark.parametrize("n", [None, 40], ids=["self", "reference"])
@pytest.mark.parametrize("m", [1, 5, 130])
def test_one_feature(backend, device, m, n):
    """Unit numbers are ±1: opposite positives cost, coincident negatives cost, and nothing is left of the gradient."""
    pairs = make_pairs("random", m, n, 1, 3, device=device)
    outcome = evaluate(loss(pairs, neg_temperature=0.0), tensors(pairs))
    sign, other = pairs.embeddings.sign(), (pairs.embeddings if n is None else pairs.ref_emb).sign()
    allowed = torch.ones(m, len(other), dtype=torch.bool, device=device)
    if n is None:
        allowed.fill_diagonal_(False)
    same = pairs.labels[:, None] == (pairs.labels if n is None else pairs.ref_labels)[None, :]
    opposite = (sign != other.T) & same & allowed
    on_top = (sign == other.T) & ~same & allowed
    expected = 0.5 * 1.2 * opposite.any(1).float() + 0.5 * 1.2 * on_top.any(1).float()
    torch.testing.assert_close(outcome.value, expected, rtol=1e-5, atol=2e-6)
    for grad in outcome.grads:
        assert float(grad.abs().max()) < 1e-5 * float(1 / pairs.embeddings.abs().min())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (0, 0), (1, None)])
def test_nothing_to_compare(backend, device, m, n, reduction):
    pairs = make_pairs("random", m, n, 4, device=device)
    outcome = evaluate(loss(pairs, reduction=reduction), tensors(pairs))
    assert torch.equal(outcome.value, torch.zeros(m if reduction == "none" else (), device=device))
    for grad, rows in zip(outcome.grads, tensors(pairs), strict=True):
        assert torch.equal(grad, torch.zeros_like(rows))


@pytest.mark.parametrize("labels", ["one_class", "distinct"])
@pytest.mark.parametrize("n", [None, 150], ids=["self", "reference"])
def test_an_empty_set_costs_nothing(backend, device, labels, n):
    """One class has no negatives; all-distinct labels have no positives (a gallery gets labels of its own)."""
    pairs = make_pairs("random", 150, n, 6, labels=labels, device=device)
    if n is not None and labels == "distinct":
        pairs = pairs._replace(ref_labels=-1 - pairs.ref_labels)
    absent, present = ({"neg_weight": w} for w in ((1.0, 0.0) if labels == "one_class" else (0.0, 1.0)))
    outcome = evaluate(loss(pairs, **absent), tensors(pairs))
    for t in (outcome.value, *outcome.grads):
        assert torch.equal(t, torch.zeros_like(t))
    assert bool((loss(pairs, **present)(*tensors(pairs)) > 0).all())


# Tiles of pairs that hold nothing, or one pair.


@pytest.mark.parametrize(
    "i, j",
    thinned([(0, 1), (5, 290), (127, 128), (128, 127), (255, 256), (131, 299), (16, 15)], (127, 128)),
)
@pytest.mark.parametrize("side", ["positive", "negative"])
@pytest.mark.parametrize("grad", ["full", "query"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_single_active_pair(kernel, device, i, j, side, grad, dtype):
    """Of 300 rows, one pair counts: both of its ends get their gradient."""
    x = torch.randn(300, 48, dtype=dtype, generator=torch.Generator().manual_seed(23))
    y = torch.randperm(300, generator=torch.Generator().manual_seed(24))
    if side == "positive":
        y[j] = y[i]
    else:
        x[j] = x[i] + 0.05 * x[j]
    pairs = Pairs(x.to(device), y.to(device), None, None)
    # Random rows are about √2 apart: far beyond this α, and beyond this α − m.
    options = {"alpha": 0.4, "margin": 0.1, "grad": grad}
    truth = assert_matches(loss(pairs, **options), [pairs.embeddings], scale=0.4)
    assert (truth.value != 0).nonzero()[:, 0].tolist() == sorted((i, j))
    assert truth.grads[0].any(1).nonzero()[:, 0].tolist() == sorted((i, j))


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
@pytest.mark.parametrize("n", [None, 280], ids=["self", "reference"])
def test_tiles_without_a_member(kernel, device, order, n):
    """Two far camps: no pair between them is active, every class within a camp is; one class has a member in each."""
    pairs = draw("random", 280, n, 8, classes=14, labels="sorted", seed=25)
    parts = []
    for rows, labels in ((pairs.embeddings, pairs.labels), (pairs.ref_emb, pairs.ref_labels)):
        if rows is None:
            parts += [None, None]
            continue
        camp = torch.where(labels < 7, 4.0, -4.0)
        camp[0] = -4.0
        mixed = (
            torch.arange(280) if order == "sorted" else torch.randperm(280, generator=torch.Generator().manual_seed(1))
        )
        parts += [torch.cat([rows, camp[:, None]], 1)[mixed].to(device), labels[mixed].to(device)]
    options = {"alpha": 1.0, "margin": 0.3}
    assert_matches(loss(Pairs(*parts), **options), [t for t in parts[::2] if t is not None])


def test_tile_side():
    """The sizes of this file straddle it."""
    assert TILE == 128


# Strides.


@pytest.mark.parametrize("view", thinned(VIEWS, "columns"))
@pytest.mark.parametrize("n", [None, 77], ids=["self", "reference"])
def test_strided_inputs(kernel, device, dtype, view, n):
    pairs = make_pairs("random", 140, n, 9, dtype=dtype, seed=26, device=device)
    turned = Pairs(*(t if t is None else t if t.is_floating_point() else strided(t) for t in pairs))
    ids = {"ids": strided(torch.arange(140, device=device) // 2)}
    ids |= {} if n is None else {"ref_ids": strided(torch.arange(n, device=device))}
    plain = {name: t.contiguous() for name, t in ids.items()}

    def through_view(*rows):
        return loss(turned, **ids)(*(VIEWS[view](t) for t in rows))

    assert_identical(evaluate(through_view, tensors(pairs)), evaluate(loss(pairs, **plain), tensors(pairs)))


@pytest.mark.heavy
def test_expanded_inputs(backend, device):
    """One row seen 140 times: every pair coincides; and an expanded incoming gradient."""
    row = torch.tensor([[0.3, -0.4, 1.2]], device=device)
    labels = torch.tensor([3], device=device).expand(140)
    outcome = evaluate(lambda x: F.ranked_list_loss(x.expand(140, 3), labels, alpha=0.2, margin=0.4), [row])
    assert outcome.value.item() == pytest.approx(0.5 * 0.2)
    assert torch.equal(outcome.grads[0], torch.zeros_like(row))
    pairs = make_pairs("random", 140, d=6, device=device)
    seed = torch.tensor(0.7, device=device)
    a = evaluate(loss(pairs), [pairs.embeddings], seed.expand(140))
    b = evaluate(loss(pairs), [pairs.embeddings], seed.expand(140).contiguous())
    assert_identical(a, b)


# One side, and mixed dtypes.


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("positive", ["all", "easy"])
def test_gradient_of_one_side(backend, device, wanted, positive):
    pairs = make_pairs("random", 140, 131, 6, seed=27, device=device)
    options = {"positive": positive, "margin": 0.9}
    both = evaluate(loss(pairs, **options), tensors(pairs))
    weights = torch.randn(140, generator=torch.Generator().manual_seed(2)).to(device)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors(pairs), wanted, strict=True)]
    value = loss(pairs, **options)(*leaves)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        (value * weights).sum().backward()
    for leaf, expected, w in zip(leaves, both.grads, wanted, strict=True):
        assert (leaf.grad is None) if not w else torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("x_dtype, g_dtype", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_promoted(backend, device, x_dtype, g_dtype):
    pairs = make_pairs("random", 60, 70, 6, seed=28, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings.to(x_dtype), ref_emb=pairs.ref_emb.to(g_dtype))
    common = pairs._replace(embeddings=pairs.embeddings.to(g_dtype))
    mixed, plain = (evaluate(loss(p), tensors(p)) for p in (pairs, common))
    assert [g.dtype for g in mixed.grads] == [x_dtype, g_dtype]
    assert torch.equal(mixed.value, plain.value)
    assert torch.equal(mixed.grads[0], plain.grads[0].to(x_dtype))
    assert torch.equal(mixed.grads[1], plain.grads[1])


def test_result_dtype(backend, device, dtype):
    pairs = make_pairs("random", 20, d=6, dtype=dtype, device=device)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for reduction in ("mean", "sum", "none"):
        assert loss(pairs, reduction=reduction)(pairs.embeddings).dtype == expected
    with torch.autocast(device, dtype=torch.bfloat16):
        assert loss(pairs)(pairs.embeddings).dtype == expected


def test_inputs_are_left_alone(backend, device):
    pairs = make_pairs("random", 140, 130, 6, device=device)
    before = [t.clone() for t in pairs]
    evaluate(loss(pairs), tensors(pairs))
    for t, b in zip(pairs, before, strict=True):
        assert torch.equal(t, b)


# Non-finite rows.

BAD = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf}


@pytest.mark.parametrize("positive", ["all", "easy"])
@pytest.mark.parametrize("bad", BAD)
def test_non_finite_query(backend, device, bad, positive):
    pairs = make_pairs("random", 140, 131, 6, seed=29, device=device)
    clean = loss(pairs, positive=positive)(*tensors(pairs))
    pairs.embeddings[129, 2] = BAD[bad]
    rows = loss(pairs, positive=positive)(*tensors(pairs))
    others = torch.arange(140, device=device) != 129
    assert bool(rows[129].isnan())
    assert torch.equal(rows[others], clean[others])
    assert bool(loss(pairs, positive=positive, reduction="mean")(*tensors(pairs)).isnan())


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("n", [None, 131], ids=["self", "gallery"])
def test_non_finite_gallery(backend, device, bad, n, normalize):
    """A bad gallery row makes every loss NaN; in self mode every row is a gallery row."""
    pairs = make_pairs("random", 140, n, 6, seed=30, device=device)
    (pairs.embeddings if n is None else pairs.ref_emb)[130, 0] = BAD[bad]
    assert bool(loss(pairs, normalize=normalize)(*tensors(pairs)).isnan().all())
    outcome = evaluate(loss(pairs, normalize=normalize, reduction="mean"), tensors(pairs))
    assert bool(outcome.value.isnan())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["query", "gallery", "self"])
def test_check_finite(backend, device, bad, where):
    pairs = make_pairs("random", 140, None if where == "self" else 20, 6, device=device)
    checked = loss(pairs, check_finite=True)
    assert bool(checked(*tensors(pairs)).isfinite().all())
    (pairs.ref_emb if where == "gallery" else pairs.embeddings)[7, 5] = BAD[bad]
    with pytest.raises((ValueError, RuntimeError), match=r"ranked_list.*must be finite \(check_finite=True\), got NaN"):
        checked(*tensors(pairs))


def test_float16_overflow_is_not_hidden(backend, device):
    """The sum of squares of a float16 row is formed in float32: the largest float16 rows are as good as others."""
    pairs = make_pairs("random", 40, d=8, device=device)
    big = pairs.embeddings / pairs.embeddings.abs().amax(1, keepdim=True) * 60000
    rows = loss(pairs)(big.half())
    torch.testing.assert_close(rows, loss(pairs)(big.half().float()), rtol=1e-5, atol=2e-6)
    assert bool(rows.isfinite().all())


def test_precision_settings_are_lower_bounds(kernel, device):
    """Whatever is asked of the products, the result is at least that accurate; "ieee" is the default."""
    pairs = draw("random", 140, d=16, seed=31, device=device)
    with dmlkernels.use_backend("reference"):
        true = evaluate(loss(pairs), [pairs.embeddings.double()])
    allowed = {"ieee": 1e-5, "tf32x3": 1e-5, "tf32": 5e-3, "bf16": 5e-2}
    for precision, tolerance in allowed.items():
        dmlkernels.set_float32_precision(precision)
        try:
            value = loss(pairs)(pairs.embeddings).double()
        finally:
            dmlkernels.set_float32_precision("ieee")
        assert float((value - true.value).abs().max()) <= tolerance


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    pairs = make_pairs("random", 140, d=6, seed=32, device=device)
    leaf = pairs.embeddings.clone().requires_grad_()
    value = loss(pairs, reduction="sum")(leaf)
    with dmlkernels.use_backend("reference"):
        value.backward()
    again = evaluate(loss(pairs, reduction="sum"), [pairs.embeddings], torch.ones((), device=device))
    assert torch.equal(leaf.grad, again.grads[0])


@pytest.mark.parametrize("scale", [1e6, 1e12, 1e15, 1e17])
def test_huge_rows(backend, device, scale):
    """Up to where squares leave float32; beyond what a backend can carry it answers NaN, never a wrong number."""
    pairs = make_pairs("random", 140, d=6, seed=34, device=device)
    huge = loss(pairs, normalize=False, alpha=2.0 * scale, margin=0.5 * scale, neg_temperature=0.0)
    unit = loss(pairs, normalize=False, alpha=2.0, margin=0.5, neg_temperature=0.0)
    got, true = huge(pairs.embeddings * scale).double() / scale, unit(pairs.embeddings.double())
    if not bool(got.isnan().all()):
        torch.testing.assert_close(got, true, rtol=1e-5, atol=4e-6)
    assert scale > 1e12 or bool(got.isfinite().all())


@pytest.mark.parametrize("alpha", [1e10, 1e17])
def test_boundary_beyond_every_distance(backend, device, alpha):
    """Every negative is a member, and nothing else is: not what a kernel pads its tiles with."""
    pairs = make_pairs("random", 37, d=6, device=device)
    rows = loss(pairs, alpha=alpha, neg_temperature=0.0, neg_weight=1.0)(pairs.embeddings)
    torch.testing.assert_close(rows, torch.full_like(rows, alpha), rtol=1e-5, atol=0)


def test_no_features(backend, device):
    """Rows of width 0 coincide: every negative costs α."""
    value = F.ranked_list_loss(torch.empty(5, 0, device=device), torch.arange(5, device=device) // 2)
    assert value.item() == pytest.approx(0.6)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_the_rows_does_not_matter(backend, device, scale):
    pairs = make_pairs("random", 140, d=6, seed=33, dtype=torch.float64, device=device)
    a = evaluate(loss(pairs), [pairs.embeddings])
    b = evaluate(loss(pairs), [pairs.embeddings * scale])
    b.grads = [b.grads[0] * scale]
    assert_close(b, a)


def test_alpha_at_an_easy_positive(backend, device):
    """Forward and backward agree on who is in the set, even where one rounding decides it."""
    pairs = make_pairs("random", 64, d=32, classes=32, seed=41, device=device)
    distances = F.nearest_positive(pairs.embeddings, pairs.labels).distance
    for alpha in distances[distances.isfinite()].tolist():
        x = pairs.embeddings.clone().requires_grad_()
        F.ranked_list_loss(x, pairs.labels, alpha=alpha, margin=0.0, positive="easy", neg_weight=0.0).backward()
        assert bool(x.grad.isfinite().all())
        assert float(x.grad.norm(dim=1).max()) < 10


def test_gradient_of_ignored_rows_beside_nan(backend, device):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(device)
    x[2] = torch.nan
    x.requires_grad_()
    F.ranked_list_loss(x, torch.tensor([0, 0, 1, 7], device=device), ignore_index=7).backward()
    assert x.grad[3].tolist() == [0, 0, 0]


def test_listed_nan_reaches_the_loss(backend, device):
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(device)
    x[0, 0] = torch.nan
    labels = torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    listed = tuple(torch.tensor(side, device=device) for side in ([0, 2], [1, 3], [2, 4]))
    assert bool(losses.RankedListLoss()(x, labels, listed).isnan())
    with pytest.raises(ValueError, match="finite"):
        losses.RankedListLoss(check_finite=True)(x, labels, listed)
