"""distance_weighted: the draws against loops and against the float64 distribution, and the cases without candidates."""

from __future__ import annotations

import math

import pytest
import torch
from support import brute_force
from support.contract import thinned
from support.distance_weighted import CUTOFF, FAR, check, draw, grid, inputs_of, moved, steps

import dmlkernels
from dmlkernels import use_backend
from dmlkernels.reference import distance_weighted as reference
from dmlkernels.testing import LABEL_KINDS, Pairs, make_pairs

LAST = math.nextafter(1.0, 0.0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("extra", ["plain", "ids", "ignore_index"])
@pytest.mark.parametrize("n", [None, 9], ids=["self", "reference"])
def test_brute_force(backend, device, n, extra, normalize):
    pairs = make_pairs("random", 13, n, 4, 3, torch.float64, seed=4, labels="negative", device=device)
    if not normalize:
        halved = [t if t is None or not t.is_floating_point() else t / 2 for t in pairs]
        pairs = Pairs(*halved)
    more = {}
    if extra == "ids":
        more = {"ids": torch.arange(13) // 2}
        more |= {} if n is None else {"ref_ids": torch.arange(n) // 3}
    elif extra == "ignore_index":
        more = {"ignore_index": -1}
    numbers = [None if t is None else t.cpu().numpy() for t in pairs]
    problem = brute_force.Problem(*numbers, **more, normalize=normalize)
    u = torch.cat([grid(13, 29), torch.zeros(13, 1), torch.full((13, 1), LAST, dtype=torch.float64)], 1)
    expected = brute_force.distance_weighted(problem, u.tolist(), CUTOFF, FAR)
    more = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in more.items()}
    assert draw(pairs, u, normalize=normalize, **more).tolist() == expected
    assert len({j for row in expected for j in row}) > 4


@pytest.mark.parametrize("n", [None, 141], ids=["self", "reference"])
@pytest.mark.parametrize("kind", thinned(["random", "clustered", "collapsed", "duplicates", "zero_rows"], "random"))
def test_every_dtype(kernel, device, dtype, kind, n):
    index = check(make_pairs(kind, 130, n, 16, 9, dtype, seed=1, avoid=[FAR], device=device), grid(130, 33))
    assert bool((index >= 0).any())


@pytest.mark.parametrize("width", [1, 2, 3, 4, 37, 128, 512])
@pytest.mark.parametrize("double", [False, True])
def test_every_width(kernel, device, width, double):
    dtype = torch.float64 if double else torch.float32
    pairs = make_pairs("random", 90, 150, width, 9, dtype, seed=2, avoid=[FAR], device=device)
    # Against a few directions that all rows share, distances spread over the whole range of the weights.
    spread = torch.linspace(0, 0.4, 90, dtype=dtype, device=device)[:, None]
    pairs = pairs._replace(embeddings=pairs.embeddings + spread * width**0.5, ref_emb=pairs.ref_emb + width**0.5 / 5)
    check(pairs, grid(90, 17))


@pytest.mark.heavy
@pytest.mark.parametrize("cutoffs", [(0.05, 0.7), (1.0, 2.0), (1e-25, 1.2), (1.999999999999, 2.0)])
@pytest.mark.parametrize("n", [None, 200], ids=["self", "reference"])
def test_cutoffs(kernel, device, cutoffs, n):
    cutoff, far = cutoffs
    pairs = make_pairs("random", 140, n, 5, 7, seed=3, avoid=[far], device=device)
    check(pairs, grid(140, 65), cutoff=cutoff, far=far)


@pytest.mark.parametrize("n", [None, 150], ids=["self", "reference"])
@pytest.mark.parametrize("labels", thinned(LABEL_KINDS, "ragged", "one_class"))
def test_every_labelling(kernel, device, labels, n):
    check(make_pairs("random", 140, n, 8, 11, seed=4, labels=labels, avoid=[FAR], device=device), grid(140, 33))


@pytest.mark.parametrize("extra", ["ids", "ignore_index"])
@pytest.mark.parametrize("n", [None, 300], ids=["self", "reference"])
def test_exclusions(kernel, device, extra, n):
    pairs = make_pairs("duplicates", 260, n, 8, 6, seed=5, avoid=[FAR], device=device)
    ids = torch.arange(600, device=device) % 40
    more = {"ids": ids[:260], "ref_ids": None if n is None else ids[260 : 260 + n]}
    index = check(pairs, grid(260, 17), **(more if extra == "ids" else {"ignore_index": 2}))
    gallery = pairs.labels if n is None else pairs.ref_labels
    some = index >= 0
    assert not bool((gallery[index.clamp_min(0)] == pairs.labels[:, None])[some].any())
    if extra == "ids":
        of_gallery = ids[:260] if n is None else more["ref_ids"]
        assert not bool((of_gallery[index.clamp_min(0)] == more["ids"][:, None])[some].any())
    else:
        assert torch.equal(some.any(1), pairs.labels != 2)
        assert not bool((gallery[index.clamp_min(0)] == 2)[some].any())


@pytest.mark.heavy
def test_exact_in_float64(kernel, device):
    """Where no step is near, every backend draws the same row."""
    pairs = make_pairs("random", 150, 270, 24, 8, torch.float64, seed=6, avoid=[FAR], device=device)
    u = grid(150, 41).to(device)
    truth, _ = steps(pairs)
    far_from_steps = (truth[:, None, :] - u[:, :, None]).abs().amin(2) > 1e-10
    assert float(far_from_steps.double().mean()) > 0.99
    with use_backend("reference"):
        expected = draw(pairs, u)
    assert bool((draw(pairs, u) == expected)[far_from_steps].all())


@pytest.mark.heavy
def test_draws_follow_the_probabilities(kernel, device):
    """Of S draws at one uniform in each S-th of [0, 1), p S fall on a row, give or take one at either end."""
    pairs = make_pairs("random", 8, 300, 12, 5, seed=7, avoid=[FAR], device=device)
    samples = 1000
    index = draw(pairs, grid(8, samples))
    truth, some = steps(moved(pairs, [pairs.embeddings.double(), pairs.ref_emb.double()]))
    probability = truth.diff(dim=1, prepend=torch.zeros_like(truth[:, :1]))
    assert bool(some.all())
    share = torch.nn.functional.one_hot(index, 300).double().mean(1)
    assert float((share - probability).abs().max()) <= 2 / samples + 1e-5
    assert float(probability.max()) > 5 / samples


@pytest.mark.parametrize("n", [None, 300], ids=["self", "reference"])
def test_first_and_last_candidate(backend, device, n):
    """u = 0 draws the first candidate, the largest u below 1 the last one, at the ends of tiles too."""
    pairs = make_pairs("random", 270, n, 4, 3, seed=8, avoid=[FAR], device=device)
    index = draw(pairs, torch.tensor([[0.0, LAST]], dtype=torch.float64).expand(270, 2))
    with use_backend("reference"):
        candidates = reference.weights(inputs_of(pairs), CUTOFF, FAR) > 0
    place = torch.arange(candidates.shape[1], device=device)
    assert bool(candidates.any(1).all())
    assert torch.equal(index[:, 0], torch.where(candidates, place, 10**6).amin(1))
    assert torch.equal(index[:, 1], torch.where(candidates, place, -1).amax(1))


@pytest.mark.heavy
def test_rows_nearer_than_the_cutoff_are_equally_likely(backend, device, dtype):
    """Copies, at distance 0, and rows within the cutoff weigh the same."""
    generator = torch.Generator().manual_seed(9)
    one = torch.randn(1, 16, generator=generator)
    x = one + torch.where(torch.arange(300)[:, None] % 2 == 0, 0, 0.02 * torch.randn(300, 16, generator=generator))
    labels = torch.arange(300) % 10
    pairs = Pairs(x.to(device, dtype), labels.to(device), None, None)
    u = ((torch.arange(4, 270, 9) + 0.5) / 270).expand(300, 30)
    others = [[j for j in range(300) if j % 10 != i % 10][4::9] for i in range(300)]
    assert draw(pairs, u).tolist() == others


@pytest.mark.parametrize(("scale", "far_apart"), [(1e-3, False), (1e3, True), (1e12, True)])
def test_unnormalized(backend, device, scale, far_apart):
    """Without normalising, distances are what they are: all below the cutoff, or all beyond what is drawn."""
    pairs = make_pairs("random", 140, 150, 6, 4, seed=10, device=device)
    pairs = pairs._replace(embeddings=pairs.embeddings * scale, ref_emb=pairs.ref_emb * scale)
    index = draw(pairs, torch.full((140, 1), 0.503), normalize=False)
    if far_apart:
        assert bool((index == -1).all())
        return
    for i in range(0, 140, 7):
        others = (pairs.ref_labels != pairs.labels[i]).nonzero()[:, 0]
        assert int(index[i]) == int(others[int(0.503 * len(others))])


@pytest.mark.parametrize("kind", ["orthogonal", "one_class", "empty_gallery", "ignored"])
def test_no_candidate(backend, device, kind):
    x, labels = torch.eye(12, device=device), torch.arange(12, device=device)
    pairs, more = Pairs(x, labels, None, None), {}
    if kind == "one_class":
        pairs = pairs._replace(embeddings=torch.ones_like(x), labels=torch.ones_like(labels))
    elif kind == "empty_gallery":
        pairs = pairs._replace(ref_emb=x[:0], ref_labels=labels[:0])
    elif kind == "ignored":
        pairs, more = pairs._replace(embeddings=torch.ones_like(x), labels=labels * 0 + 5), {"ignore_index": 5}
    assert draw(pairs, torch.full((12, 3), 0.5), **more).tolist() == [[-1] * 3] * 12


@pytest.mark.parametrize("shape", [(0, 3), (5, 0)])
def test_nothing_to_draw(backend, device, shape):
    pairs = Pairs(torch.randn(shape[0], 4, device=device), torch.arange(shape[0], device=device), None, None)
    assert draw(pairs, torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("n", [None, 150], ids=["self", "reference"])
def test_rows_that_are_not_finite(backend, device, n, value):
    """Such a query draws nothing; such a gallery row leaves nobody a draw; an ignored one changes nothing."""
    pairs, u = make_pairs("random", 140, n, 6, 5, seed=11, avoid=[FAR], device=device), grid(140, 4)
    good = draw(pairs, u, ignore_index=7)
    pairs.embeddings[17, 2] = value
    bad = draw(pairs, u)
    if n is None:
        assert bool((bad == -1).all())
    else:
        assert bad[17].tolist() == [-1] * 4
        others = torch.arange(140, device=device) != 17
        assert torch.equal(bad[others], good[others])
        gallery = pairs.ref_emb.clone()
        gallery[3, 1] = value
        assert bool((draw(pairs._replace(ref_emb=gallery), u) == -1).all())
    pairs.labels[17] = 7
    after = draw(pairs, u, ignore_index=7)
    assert bool((after[17] == -1).all())
    assert bool((after[torch.arange(140, device=device) != 17] >= 0).any())


@pytest.mark.large
@pytest.mark.parametrize("n", [None, 200], ids=["self", "reference"])
def test_more_rows_than_are_weighed_at_a_time(kernel, device, n):
    check(make_pairs("random", 4300 if n else 700, n, 3, 40, seed=12, device=device), grid(4300 if n else 700, 2))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_lone_candidates_at_the_cutoff(kernel, device, precision):
    """Where products of few bits and the rows themselves disagree on the only candidate, it is drawn or nothing is."""
    side, others = 60, 130  # the candidates stand behind other rows, in the second tile
    d = FAR + 1e-3 * torch.linspace(-1, 1, side, dtype=torch.float64)
    cosine = 1 - d.square() / 2
    x, g = torch.zeros(2, side, 2 * side, dtype=torch.float64)
    place = torch.arange(side)
    x[place, place] = 1
    g[place, place] = cosine
    g[place, side + place] = (1 - cosine.square()).sqrt()
    labels = torch.zeros(side, dtype=torch.int64)
    # TF32 and bfloat16 round the sines to 1: from 0.9998, and from 1.0004 in every other row.
    g *= torch.where(place % 2 == 0, 1, 1.0006)[:, None]
    gallery = torch.cat([x[:1].expand(others, -1), g]).float()
    of_gallery = torch.cat([torch.zeros(others, dtype=torch.int64), labels + 1])
    pairs = Pairs(*(t.to(device) for t in (x.float(), labels, gallery, of_gallery)))
    before = dmlkernels.get_float32_precision()
    dmlkernels.set_float32_precision(precision)
    try:
        index = draw(pairs, grid(side, 3)).cpu()
    finally:
        dmlkernels.set_float32_precision(before)
    assert bool(((index == others + place[:, None]) | (index == -1)).all())
    # Which moves a distance by 3e-4 at most.
    certain = (d - FAR).abs() > 5e-4
    assert torch.equal(index[certain] >= 0, (d < FAR)[certain, None].expand(-1, 3))
