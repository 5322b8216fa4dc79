"""nearest_positive and mine: shapes, strides, one-sided gradients and non-finite rows."""

from __future__ import annotations

import pytest
import torch
from support.contract import VIEWS, assert_identical, strided, thinned
from support.nearest_positive import CHOICES, distances, match, select
from support.pairs import tensors

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import Pairs, evaluate, make_pairs

# Shapes.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "m", thinned([1, 2, 3, 15, 17, 31, 33, 63, 65, 127, 128, 129, 130, 200, 257, 300], 1, 129, 257)
)
@pytest.mark.parametrize("choice", ["nearest", "hard_semihard"])
def test_rows(kernel, device, choice, m, dtype):
    match(choice, make_pairs("random", m, d=6, classes=max(2, m // 9), seed=20, dtype=dtype, device=device))


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
@pytest.mark.parametrize("choice", CHOICES)
def test_rows_and_gallery(kernel, device, m, n, choice):
    match(choice, make_pairs("random", m, n, 6, 4, seed=21, device=device), max_quiet=0.2)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["float64", "float32", "bfloat16"]
)
@pytest.mark.parametrize("d", thinned([3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 128, 130], 3, 17, 33, 130))
def test_widths(kernel, device, d, dtype):
    match("easy_semihard", make_pairs("random", 70, d=d, classes=5, seed=22, dtype=dtype, device=device))


@pytest.mark.parametrize("classes", [1, 2, 130, 299, 300])
@pytest.mark.parametrize("labels", ["shuffled", "sorted"])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_class_sizes(kernel, device, choice, labels, classes):
    """From one class of 300 rows, over two that share a tile, to singletons."""
    match(choice, make_pairs("random", 300, d=6, classes=classes, labels=labels, seed=23, device=device))


@pytest.mark.parametrize("m", [2, 5, 130])
def test_one_feature(backend, device, m):
    """Powers of two become ±1 exactly: distances are 0 or 2, and ties are the rule."""
    pairs = make_pairs("random", m, d=1, classes=2, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings.sign() * 2.0 ** (pairs.embeddings * 4).round())
    sign = pairs.embeddings[:, 0].sign().tolist()
    labels = pairs.labels.tolist()
    distance, index = select("nearest", pairs)
    for i in range(m):
        mates = [j for j in range(m) if j != i and labels[j] == labels[i]]
        best = min(mates, key=lambda j: (sign[j] != sign[i], j), default=-1)
        assert index[0, i] == best
        assert distance[0, i] == (torch.inf if best < 0 else pytest.approx(2.0 * (sign[best] != sign[i]), abs=1e-6))


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (0, 0), (1, None)])
def test_nothing_to_choose(backend, device, choice, m, n):
    pairs = make_pairs("random", m, n, 4, device=device)
    distance, index = select(choice, pairs)
    assert distance.shape == index.shape == (1 if choice == "nearest" else 2, m)
    assert bool(distance.isposinf().all())
    assert bool((index == -1).all())
    for grad, rows in zip(evaluate(distances(choice, pairs), tensors(pairs)).grads, tensors(pairs), strict=True):
        assert torch.equal(grad, torch.zeros_like(rows))


@pytest.mark.parametrize("positive", ["easy", "hard"])
@pytest.mark.parametrize("negative", ["hard", "semihard"])
def test_a_missing_side(backend, device, positive, negative):
    """Distinct labels have no positive, and so no semi-hard negative; one class has no negative."""
    words = {"positive": positive, "negative": negative}
    x = torch.randn(140, 6, generator=torch.Generator().manual_seed(24)).to(device)
    mined = F.mine(x, torch.arange(140, device=device), **words)
    assert bool((mined.pos_index == -1).all())
    assert bool((mined.neg_index == -1).all()) == (negative == "semihard")
    mined = F.mine(x, torch.zeros(140, dtype=torch.int64, device=device), **words)
    assert bool((mined.pos_index >= 0).all())
    assert bool((mined.neg_index == -1).all())
    assert bool(mined.neg_distance.isposinf().all())


@pytest.mark.parametrize("scale", [1e6, 1e12, 1e15, 1e17])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_huge_rows(backend, device, choice, scale):
    """Up to where squares leave float32; beyond what a backend can carry it answers NaN, never a wrong row."""
    pairs = make_pairs("random", 140, 130, 6, seed=32, device=device)
    huge = pairs._replace(embeddings=pairs.embeddings * scale, ref_emb=pairs.ref_emb * scale)
    distance, index = select(choice, huge, normalize=False)
    if not bool(distance.isnan().all()):
        exact = pairs._replace(embeddings=pairs.embeddings.double(), ref_emb=pairs.ref_emb.double())
        assert torch.equal(index, select(choice, exact, normalize=False)[1])
    assert scale > 1e12 or not bool(distance.isnan().any())


def test_no_features(backend, device):
    found = F.nearest_positive(torch.empty(5, 0, device=device), torch.arange(5, device=device) // 2)
    assert found.index.tolist() == [1, 0, 3, 2, -1]
    assert found.distance.tolist() == [0, 0, 0, 0, torch.inf]


# Strides.


@pytest.mark.parametrize("view", thinned(VIEWS, "columns"))
@pytest.mark.parametrize("n", [None, 77], ids=["self", "reference"])
@pytest.mark.parametrize("choice", ["nearest", "hard_semihard"])
def test_strided_inputs(kernel, device, dtype, choice, view, n):
    pairs = make_pairs("random", 140, n, 9, dtype=dtype, seed=25, device=device)
    turned = Pairs(*(t if t is None else t if t.is_floating_point() else strided(t) for t in pairs))
    ids = {"ids": strided(torch.arange(140, device=device) // 2)}
    ids |= {} if n is None else {"ref_ids": strided(torch.arange(n, device=device))}
    plain = {name: t.contiguous() for name, t in ids.items()}

    def through_view(*rows):
        return distances(choice, turned, **ids)(*(VIEWS[view](t) for t in rows))

    a, b = evaluate(through_view, tensors(pairs)), evaluate(distances(choice, pairs, **plain), tensors(pairs))
    assert_identical(a, b)


@pytest.mark.heavy
def test_expanded_inputs(backend, device):
    row = torch.tensor([[0.3, -0.4, 1.2]], device=device)
    labels = torch.tensor([3], device=device).expand(140)
    found = F.nearest_positive(row.expand(140, 3), labels)
    assert found.index.tolist() == [1] + [0] * 139
    assert torch.equal(found.distance, torch.zeros(140, device=device))
    pairs = make_pairs("random", 140, d=6, device=device)
    seed = torch.tensor(0.7, device=device).expand(140)
    a = evaluate(distances("nearest", pairs), [pairs.embeddings], seed)
    b = evaluate(distances("nearest", pairs), [pairs.embeddings], seed.contiguous())
    assert_identical(a, b)


# One side, one output.


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("choice", CHOICES)
def test_gradient_of_one_side(backend, device, choice, wanted):
    pairs = make_pairs("random", 140, 131, 6, seed=26, device=device)
    both = evaluate(distances(choice, pairs), tensors(pairs), torch.ones(1, device=device).expand(both_size(choice)))
    leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors(pairs), wanted, strict=True)]
    value = distances(choice, pairs)(*leaves)
    assert value.requires_grad == any(wanted)
    if any(wanted):
        value.sum().backward()
    for leaf, expected, w in zip(leaves, both.grads, wanted, strict=True):
        assert (leaf.grad is None) if not w else torch.equal(leaf.grad, expected)


def both_size(choice):
    return 140 if choice == "nearest" else 280


@pytest.mark.parametrize("n", [None, 131], ids=["self", "reference"])
@pytest.mark.parametrize("used", [0, 2])
def test_gradient_of_one_output(backend, device, used, n):
    """A loss of the positives alone, or of the negatives alone."""
    pairs = make_pairs("random", 140, n, 6, dtype=torch.float64, seed=27, device=device)
    weights = torch.linspace(-1, 1, 140, dtype=torch.float64, device=device)
    rows = tensors(pairs)

    def one(*rows):
        return F.mine(rows[0], pairs.labels, *rows[1:], *([] if n is None else [pairs.ref_labels]))[used]

    zero = torch.zeros_like(weights)
    apart = evaluate(one, rows, weights)
    together = torch.cat([weights, zero] if used == 0 else [zero, weights])
    whole = evaluate(distances("easy_hard", pairs), rows, together)
    for a, b in zip(apart.grads, whole.grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("choice", CHOICES)
def test_outputs(backend, device, dtype, choice):
    """Names, dtypes, and indices that carry no gradient."""
    pairs = make_pairs("random", 20, d=6, dtype=dtype, device=device)
    x = pairs.embeddings.requires_grad_()
    names = ("distance", "index") if choice == "nearest" else ("pos_distance", "pos_index", "neg_distance", "neg_index")
    found = F.nearest_positive(x, pairs.labels) if choice == "nearest" else F.mine(x, pairs.labels)
    assert found._fields == names
    for name in names:
        output = getattr(found, name)
        assert output.shape == (20,)
        assert output.requires_grad == name.endswith("distance")
        if name.endswith("distance"):
            assert output.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        else:
            assert output.dtype == torch.int64


@pytest.mark.parametrize("x_dtype, g_dtype", [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_mixed_dtypes_are_promoted(backend, device, x_dtype, g_dtype):
    pairs = make_pairs("random", 60, 70, 6, seed=28, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings.to(x_dtype), ref_emb=pairs.ref_emb.to(g_dtype))
    common = pairs._replace(embeddings=pairs.embeddings.to(g_dtype))
    mixed, plain = (evaluate(distances("easy_hard", p), tensors(p)) for p in (pairs, common))
    assert [g.dtype for g in mixed.grads] == [x_dtype, g_dtype]
    assert torch.equal(mixed.value, plain.value)
    assert torch.equal(mixed.grads[0], plain.grads[0].to(x_dtype))
    assert torch.equal(mixed.grads[1], plain.grads[1])


def test_inputs_are_left_alone(backend, device):
    pairs = make_pairs("random", 140, 130, 6, device=device)
    before = [t.clone() for t in pairs]
    evaluate(distances("hard_semihard", pairs), tensors(pairs))
    for t, b in zip(pairs, before, strict=True):
        assert torch.equal(t, b)


# Non-finite rows.

BAD = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("choice", CHOICES)
def test_non_finite_query(backend, device, choice, bad):
    pairs = make_pairs("random", 140, 131, 6, seed=29, device=device)
    clean, clean_index = select(choice, pairs)
    pairs.embeddings[129, 2] = BAD[bad]
    distance, index = select(choice, pairs)
    others = torch.arange(140, device=device) != 129
    assert bool(distance[:, 129].isnan().all())
    assert bool((index[:, 129] == -1).all())
    assert torch.equal(distance[:, others], clean[:, others])
    assert torch.equal(index[:, others], clean_index[:, others])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("n", [None, 131], ids=["self", "gallery"])
@pytest.mark.parametrize("choice", ["nearest", "hard_semihard"])
def test_non_finite_gallery(backend, device, choice, bad, n, normalize):
    pairs = make_pairs("random", 140, n, 6, seed=30, device=device)
    (pairs.embeddings if n is None else pairs.ref_emb)[130, 0] = BAD[bad]
    distance, index = select(choice, pairs, normalize=normalize)
    assert bool(distance.isnan().all())
    assert bool((index == -1).all())


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("where", ["query", "gallery", "self"])
@pytest.mark.parametrize("choice", ["nearest", "hard_hard"])
def test_check_finite(backend, device, choice, bad, where):
    pairs = make_pairs("random", 140, None if where == "self" else 20, 6, device=device)
    select(choice, pairs, check_finite=True)
    (pairs.ref_emb if where == "gallery" else pairs.embeddings)[7, 5] = BAD[bad]
    op = "nearest_positive" if choice == "nearest" else "mine"
    with pytest.raises((ValueError, RuntimeError), match=rf"{op}.*must be finite \(check_finite=True\), got NaN"):
        select(choice, pairs, check_finite=True)


def test_backward_runs_on_the_backend_of_its_forward(kernel, device):
    pairs = make_pairs("random", 140, d=6, seed=31, device=device)
    leaf = pairs.embeddings.clone().requires_grad_()
    value = distances("easy_hard", pairs)(leaf).sum()
    with dmlkernels.use_backend("reference"):
        value.backward()
    again = evaluate(distances("easy_hard", pairs), [pairs.embeddings], torch.ones(280, device=device))
    assert torch.equal(leaf.grad, again.grads[0])
