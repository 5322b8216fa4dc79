"""nearest_positive and mine: selections, ties, values and gradients, and the properties that follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import brute_force
from support.contract import assert_close, assert_identical, thinned
from support.nearest_positive import CHOICES, check_selection, distances, exact_distances, masks, match, select
from support.pairs import tensors

from dmlkernels import _backend
from dmlkernels import functional as F
from dmlkernels.reference.pairwise import compute_dtype
from dmlkernels.testing import (
    INTEGER_DTYPES,
    KINDS,
    LABEL_KINDS,
    Outcome,
    Pairs,
    evaluate,
    make_pairs,
)

# What is selected: None is nearest_positive, the others are the words of mine.


# Values and gradients against loops.


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index"])
@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
@pytest.mark.parametrize("choice", CHOICES)
def test_brute_force(backend, device, choice, n, extra, normalize):
    pairs = make_pairs("random", 13, n, 4, 3, torch.float64, seed=4, labels="negative", device=device)
    more = {}
    if extra == "ids":
        more = {"ids": torch.arange(13) // 2}
        more |= {} if n is None else {"ref_ids": torch.arange(n) // 3}
    elif extra == "ignore_index":
        more = {"ignore_index": -1}
    numbers = [None if t is None else t.cpu().numpy() for t in pairs]
    problem = brute_force.Problem(*numbers, **more, normalize=normalize)
    expected = brute_force.mine(problem, *(CHOICES[choice] or ()))
    more = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in more.items()}
    lists = 1 if CHOICES[choice] is None else 2
    weights = torch.linspace(-1, 2, lists * 13, dtype=torch.float64, device=device)
    outcome = evaluate(distances(choice, pairs, normalize=normalize, **more), tensors(pairs), weights)
    _, index = select(choice, pairs, normalize=normalize, **more)
    coefficients = {}
    for k in range(lists):
        np.testing.assert_allclose(outcome.value.reshape(lists, 13)[k].cpu(), expected[2 * k], rtol=1e-13)
        assert index[k].tolist() == expected[2 * k + 1]
        for i, j in enumerate(expected[2 * k + 1]):
            if j >= 0:
                coefficients[i, j] = float(weights[k * 13 + i])
    for got, want in zip(outcome.grads, problem.scatter(coefficients), strict=False):
        np.testing.assert_allclose(got.cpu(), want, rtol=1e-12, atol=1e-13)


@pytest.mark.heavy
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("n", [None, 6], ids=["self", "reference"])
def test_gradcheck(backend, device, choice, n):
    pairs = make_pairs("random", 8, n, 4, 2, torch.float64, seed=1, device=device)
    leaves = [t.clone().requires_grad_() for t in tensors(pairs)]

    def finite(*rows):
        d = distances(choice, pairs)(*rows)
        return torch.where(d.isfinite(), d, 0)

    assert torch.autograd.gradcheck(finite, leaves)


# Values and gradients of the kernels against the float64 reference.


@pytest.mark.parametrize("n", [None, 141], ids=["self", "reference"])
@pytest.mark.parametrize("kind", thinned(KINDS, "random", "clustered"))
@pytest.mark.parametrize("choice", ["nearest", "hard_hard", "easy_semihard"])
def test_every_dtype(kernel, device, dtype, choice, kind, n):
    match(choice, make_pairs(kind, 130, n, 16, dtype=dtype, seed=1, device=device))


@pytest.mark.parametrize("n", [None, 133], ids=["self", "reference"])
@pytest.mark.parametrize("labels", thinned(LABEL_KINDS, "ragged"))
@pytest.mark.parametrize("choice", CHOICES)
def test_every_labelling(kernel, device, choice, labels, n):
    match(choice, make_pairs("random", 200, n, 8, 11, labels=labels, seed=2, device=device))


@pytest.mark.parametrize("data", thinned(["random", "with_zeros", "late", "tied", "near"], "late"))
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_a_class_of_many_tiles(kernel, device, dtype, choice, data):
    """Few queries against one large class: most columns beat nothing that was found before, and the last ones may."""
    queries, gallery = 3, 2900  # more tiles of columns than blocks share
    pairs = make_pairs("random", queries, gallery, 12, 1, dtype, device=device)
    x, g = pairs.embeddings, pairs.ref_emb
    if data == "with_zeros":
        g[::97] = 0
    elif data == "late":
        g[-2], g[-1] = x[1] + 0.05 * x[2], -x[1]
    elif data == "tied":
        g[700], g[-1] = x[0] + 0.1 * x[1], x[0] + 0.1 * x[1]
    elif data == "near":
        g[700], g[-1] = x[0] + 2e-2 * x[1], x[0] + 1e-2 * x[1]
    index = check_selection(choice, pairs)
    if data == "tied" and choice == "nearest":
        assert int(index[0, 0]) == 700


@pytest.mark.parametrize("choice", ["nearest", "hard_hard"])
def test_what_products_cannot_tell_apart(kernel, device, dtype, choice):
    """Of rows nearly as near (or far) as an earlier one the best is chosen, wherever in the gallery it lies."""
    queries, gallery, times, gap = 40, 500, *((1, 2e2) if choice == "nearest" else (-1, 5e3))
    pairs = make_pairs("random", queries, gallery, 24, 1, dtype, device=device)
    x, g = pairs.embeddings, pairs.ref_emb
    aside = x.roll(1, 0) * x.norm(dim=1, keepdim=True) / x.norm(dim=1, keepdim=True).roll(1, 0)
    eps = torch.finfo(compute_dtype(dtype)).eps
    g[:queries], g[-queries:] = times * x + (1e-2 + gap * eps) * aside, times * x + 1e-2 * aside
    found = select(choice, pairs)[1][0]
    exact = exact_distances(pairs).square()
    first, last = exact[:, :queries].diagonal(), exact[:, -queries:].diagonal()
    told = (first - last).abs() > 8 * eps * torch.maximum(first, last)
    later = (last < first) == (times > 0)
    assert bool((told & later).any())
    expected = torch.arange(queries, device=device) + (gallery - queries) * later
    assert torch.equal(found[told], expected[told])


def test_near_rows_in_tf32(kernel, device, monkeypatch):
    """Their rounded rows say nothing of which is nearer: they are compared as they are."""
    monkeypatch.setattr(_backend, "_precision", "tf32")
    queries, gallery = 40, 500
    pairs = make_pairs("random", queries, gallery, 24, 1, torch.float32, device=device)
    x, g = pairs.embeddings, pairs.ref_emb
    g[:queries], g[-queries:] = x + 1.001e-2 * x.roll(1, 0), x + 1e-2 * x.roll(1, 0)
    found = F.nearest_positive(x, pairs.labels, g, pairs.ref_labels).index
    assert found.tolist() == list(range(gallery - queries, gallery))


@pytest.mark.parametrize("extra", ["ids", "ignore_index"])
@pytest.mark.parametrize("n", [None, 300], ids=["self", "reference"])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_exclusions(kernel, device, choice, n, extra):
    """Copies of a row share an id, and so are not each other's nearest positive."""
    pairs = make_pairs("duplicates", 260, n, 8, 6, seed=3, device=device)
    rows = torch.cat(tensors(pairs))
    ids = torch.unique(rows, dim=0, return_inverse=True)[1]
    more = {"ids": ids[:260], "ref_ids": None if n is None else ids[260:]} if extra == "ids" else {"ignore_index": 2}
    truth = match(choice, pairs, **more)
    if extra == "ids":
        assert bool((truth.value > 1e-3).all())


@pytest.mark.parametrize("choice", CHOICES)
def test_classes_on_one_side_only(kernel, device, choice):
    pairs = make_pairs("random", 150, 170, 8, 20, seed=4, device=device)
    pairs = pairs._replace(labels=pairs.labels * 2, ref_labels=pairs.ref_labels * 3)
    match(choice, pairs)
    assert bool((select(choice, pairs)[1][0] == -1).any())


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("choice", ["nearest", "easy_hard"])
def test_label_dtypes(backend, device, choice, label_dtype):
    classes = 2 if label_dtype == torch.bool else 60
    pairs = make_pairs("random", 140, 50, 8, classes, label_dtype=label_dtype, device=device)
    as_int64 = pairs._replace(labels=pairs.labels.long(), ref_labels=pairs.ref_labels.long())
    for a, b in zip(select(choice, pairs), select(choice, as_int64), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [1e-4, 1e4, 1e8])
@pytest.mark.parametrize("choice", CHOICES)
def test_unnormalized(kernel, device, choice, scale):
    pairs = make_pairs("random", 140, 150, 8, seed=5, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings * scale, ref_emb=pairs.ref_emb * scale)
    _, index = select(choice, pairs, normalize=False)
    unit = pairs._replace(embeddings=pairs.embeddings.double() / scale, ref_emb=pairs.ref_emb.double() / scale)
    assert torch.equal(index, select(choice, unit, normalize=False)[1])
    match(choice, pairs, normalize=False, scale=scale)


# Ties and strictness, where arithmetic is exact.


@pytest.mark.parametrize("extra", ["plain", "ids"])
@pytest.mark.parametrize("n", [None, 290], ids=["self", "reference"])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_ties_go_to_the_lowest_index(backend, device, dtype, choice, n, extra):
    """Small whole coordinates: hundreds of exactly equal distances, zero included, in every dtype."""
    generator = torch.Generator().manual_seed(6)
    rows = [torch.randint(-2, 3, (size, 3), generator=generator).to(dtype) for size in (300, n) if size]
    labels = [torch.randint(0, 7, (len(r),), generator=generator) for r in rows]
    pairs = Pairs(*(t.to(device) for pair in zip(rows, labels, strict=True) for t in pair), *[None] * (2 * (n is None)))
    more = {}
    if extra == "ids":
        more = {"ids": torch.randint(0, 50, (300,), generator=generator).to(device)}
        more |= {} if n is None else {"ref_ids": torch.randint(0, 50, (n,), generator=generator).to(device)}
    _, index = select(choice, pairs, normalize=False, **more)

    d = exact_distances(pairs, False)
    positive, negative = masks(pairs, **more)
    words = CHOICES[choice] or ("easy", None)

    def first(candidates, sign):
        keyed = torch.where(candidates, sign * d, torch.inf)
        lowest = torch.where(
            candidates & (keyed == keyed.amin(1, keepdim=True)), torch.arange(d.shape[1]).to(device), 999
        )
        return torch.where(candidates.any(1), lowest.amin(1), -1)

    expected = first(positive, -1 if words[0] == "hard" else 1)
    assert torch.equal(index[0], expected)
    if words[1] == "semihard":
        chosen = d.gather(1, expected.clamp_min(0)[:, None])
        negative = negative & (d > torch.where(expected[:, None] >= 0, chosen, torch.inf))
    if words[1]:
        assert torch.equal(index[1], first(negative, 1))


def test_equal_distance_is_not_semihard(backend, device):
    """Orthonormal rows are all √2 apart: no negative is strictly farther than the positive."""
    x, labels = torch.eye(6, device=device), torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    mined = F.mine(x, labels, negative="semihard")
    assert mined.pos_index.tolist() == [1, 0, 3, 2, 5, 4]
    assert mined.neg_index.tolist() == [-1] * 6
    assert mined.neg_distance.tolist() == [torch.inf] * 6
    hard = F.mine(x, labels)
    assert hard.neg_index.tolist() == [2, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("n", [None, 200], ids=["self", "reference"])
@pytest.mark.parametrize("choice", thinned(CHOICES, "nearest", "hard_semihard"))
def test_first_of_copies(kernel, device, dtype, choice, n):
    """Wherever copies of a gallery row stand, their distances have the same bits, so that the first of them wins."""
    pairs = make_pairs("duplicates", 260, n, 19, 3, dtype, seed=7, device=device)
    _, index = select(choice, pairs)
    gallery = pairs.embeddings if n is None else pairs.ref_emb
    same_row = (gallery[:, None] == gallery[None, :]).all(2)
    earlier = torch.tril(same_row, -1)
    candidates = masks(pairs)
    for k in range(len(index)):
        some = index[k] >= 0
        assert not bool((earlier[index[k].clamp_min(0)] & candidates[k])[some].any())


# Numerics.


@pytest.mark.parametrize("gap", thinned([1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6], 1e-1, 1e-3, 1e-6))
@pytest.mark.parametrize("choice", CHOICES)
def test_near_duplicates(kernel, device, choice, gap):
    """Every row has three positives within a few gaps: the nearest is found, with its distance and its direction."""
    generator = torch.Generator().manual_seed(8)
    centre = torch.nn.functional.normalize(torch.randn(60, 1, 24, generator=generator), dim=2)
    offset = torch.nn.functional.normalize(torch.randn(60, 4, 24, generator=generator), dim=2)
    rows = centre + gap * torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None] * offset
    pairs = Pairs(rows.reshape(240, 24).to(device), (torch.arange(240) // 4).to(device), None, None)
    # eps over the gap is what a direction may be off by: 1 % at 1e-5, a tenth at 1e-6, eight times that in the rule.
    truth = match(choice, pairs, max_quiet={1e-5: 0.3, 1e-6: 1.0}.get(gap, 0.1))
    if CHOICES[choice] in (None, ("easy", "hard")):
        d = select(choice, pairs)[0][0].double()
        # At 0.1 the product form still holds (17 eps of unit rows); nearer only the rounding of the unit rows counts.
        rounding = 2e-6 if gap == 0.1 else 2e-7
        assert bool(((d - truth.value[:240]).abs() <= 1e-5 * truth.value[:240] + rounding).all())


@pytest.mark.parametrize("choice", CHOICES)
def test_coincident_positive(backend, device, choice):
    """The distance to a copy is exactly 0, and has no gradient."""
    x = torch.randn(140, 12, generator=torch.Generator().manual_seed(9)).to(device)
    pairs = Pairs(torch.cat([x, x]), torch.cat([torch.arange(140), torch.arange(140)]).to(device), None, None)
    outcome = evaluate(lambda e: select(choice, pairs, e)[0][0], [pairs.embeddings])
    assert torch.equal(outcome.value, torch.zeros(280, device=device))
    assert torch.equal(outcome.grads[0], torch.zeros_like(pairs.embeddings))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_rows_that_normalise_alike_get_no_gradient(backend, device, dtype):
    """Multiples of a row differ by a rounding of their unit rows, whose direction means nothing."""
    x = torch.randn(70, 24, dtype=dtype, generator=torch.Generator().manual_seed(9)).to(device)
    scale = torch.linspace(0.3, 3.1, 70, dtype=dtype, device=device)[:, None]
    pairs = Pairs(torch.cat([x, x * scale]), torch.arange(70, device=device).repeat(2), None, None)
    outcome = evaluate(distances("nearest", pairs), [pairs.embeddings])
    assert float(outcome.value.max()) <= 4 * torch.finfo(dtype).eps
    assert torch.equal(outcome.grads[0], torch.zeros_like(pairs.embeddings))


# Properties.


@pytest.mark.heavy
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("n", [None, 140], ids=["self", "reference"])
def test_row_order_does_not_matter(backend, device, choice, n, dtype):
    pairs = make_pairs("random", 260, n, 8, labels="sorted", dtype=dtype, seed=10, device=device)
    order = torch.randperm(260, generator=torch.Generator().manual_seed(1)).to(device)
    mixed = pairs._replace(embeddings=pairs.embeddings[order], labels=pairs.labels[order])
    index, moved = select(choice, pairs)[1], select(choice, mixed)[1]
    if n is None:
        place = torch.empty_like(order)
        place[order] = torch.arange(260, device=device)
        index = torch.where(index >= 0, place[index.clamp_min(0)], -1)
    assert torch.equal(moved, index[:, order])
    weights = torch.linspace(-1, 1, index.numel(), dtype=dtype, device=device)
    a = evaluate(distances(choice, pairs), tensors(pairs), weights)
    moved_weights = weights.reshape(index.shape)[:, order].flatten()
    b = evaluate(distances(choice, mixed), tensors(mixed), moved_weights)
    a.value, a.grads[0] = a.value.reshape(index.shape)[:, order].flatten(), a.grads[0][order]
    assert_close(b, a)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("m", thinned([20, 130, 257], 20, 130))
def test_self_mode_is_reference_mode_with_ids(backend, device, choice, m, dtype):
    pairs = make_pairs("random", m, None, 8, dtype=dtype, seed=11, device=device)
    other = pairs._replace(ref_emb=pairs.embeddings, ref_labels=pairs.labels)
    ids = {"ids": torch.arange(m, device=device), "ref_ids": torch.arange(m, device=device)}
    assert torch.equal(select(choice, pairs)[1], select(choice, other, **ids)[1])
    own = evaluate(distances(choice, pairs), tensors(pairs))
    apart = evaluate(distances(choice, other, **ids), tensors(other))
    assert_close(own, Outcome(apart.value, [apart.grads[0] + apart.grads[1]]))


@pytest.mark.parametrize("poison", [False, True], ids=["plain", "nan_in_ignored_row"])
@pytest.mark.parametrize("choice", CHOICES)
def test_ignore_index_is_removal(kernel, device, choice, poison):
    pairs = make_pairs("random", 200, None, 8, labels="negative", seed=12, device=device)
    kept = pairs.labels != -1
    fewer = Pairs(pairs.embeddings[kept], pairs.labels[kept], None, None)
    if poison:
        pairs.embeddings[~kept] = torch.nan
    number = torch.arange(200, device=device)[kept]
    got, got_index = select(choice, pairs, ignore_index=-1, check_finite=True)
    expected, index = select(choice, fewer)
    rounding = kernel.product_rounding
    torch.testing.assert_close(got[:, kept], expected, rtol=rounding, atol=rounding)
    assert torch.equal(got_index[:, kept], torch.where(index >= 0, number[index.clamp_min(0)], -1))
    assert bool((got_index[:, ~kept] == -1).all())
    assert bool(got[:, ~kept].isposinf().all())
    weights = torch.linspace(-1, 1, len(index) * 200, device=device).reshape(-1, 200)
    a = evaluate(distances(choice, pairs, ignore_index=-1), tensors(pairs), weights.flatten())
    b = evaluate(distances(choice, fewer), tensors(fewer), weights[:, kept].flatten())
    assert torch.equal(a.grads[0][~kept], torch.zeros_like(a.grads[0][~kept]))
    assert_identical(Outcome(b.value, [a.grads[0][kept]]), b)


@pytest.mark.heavy
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.integers(1, 140),
    n=st.none() | st.integers(1, 140),
    d=st.integers(5, 40),
    classes=st.integers(1, 20),
    kind=st.sampled_from(KINDS),
    labels=st.sampled_from(LABEL_KINDS),
    choice=st.sampled_from(sorted(CHOICES)),
    normalize=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 999),
)
def test_any_problem(kernel, device, m, n, d, classes, kind, labels, choice, normalize, dtype, seed):
    pairs = make_pairs(kind, m, n, d, classes, dtype, seed, labels=labels, device=device)
    size = float(torch.cat(tensors(pairs)).norm(dim=1).max()) if not normalize else 1.0
    match(choice, pairs, normalize=normalize, scale=max(size, 1.0), max_quiet=1.0)
