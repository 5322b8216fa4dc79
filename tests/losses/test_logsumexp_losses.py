"""Multi-similarity, NT-Xent, SupCon, circle, lifted and NCA losses on every backend, against loops over formulae."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import contract
from support.logsumexp_cases import CASES, EASY, KINDS, MINED, bound_to, check_brute_force
from support.pairs import all_pairs, ids_of, module_of, problem_of, tensors

from dmlkernels import losses, miners
from dmlkernels.testing import assert_matches, evaluate, make_pairs

LISTED = [name for name in CASES if CASES[name].options.get("negative", "all") == "all"]
# Losses that keep the side that a batch has; mining keeps the nearest positive whatever there is, and nothing else.
KEEP_NEGATIVES = ("multi_similarity", "lifted")
KEEP_POSITIVES = (*KEEP_NEGATIVES, "multi_similarity_easy", "multi_similarity_mined_easy", "lifted_easy")
EXTRAS = {"plain": {}, "ids": {}, "ignore_index": {"ignore_index": 1}, "raw": {"normalize": False}}


@pytest.mark.parametrize("extra", contract.thinned(EXTRAS, "ids", "raw"))
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_brute_force(backend, device, name, n, extra):
    case, more = CASES[name], EXTRAS[extra]
    pairs = make_pairs("random", 14, n, 5, 4, torch.float64, seed=1, device=device)
    pairs.labels[3] = 9  # a query without positives
    if extra == "raw":
        pairs = pairs._replace(embeddings=pairs.embeddings / 2, ref_emb=None if n is None else pairs.ref_emb / 2)
    ids = ids_of(pairs) if extra == "ids" else {}
    outcome = check_brute_force(case, pairs, ids, **more)
    assert outcome.value.item() > 1e-3
    assert all(bool(grad.any()) for grad in outcome.grads)
    same = evaluate(module_of(case.build(**more), pairs, **ids), tensors(pairs), torch.ones((), device=device))
    (contract.assert_close if case.module is losses.NCALoss else contract.assert_identical)(same, outcome)


@pytest.mark.parametrize("labels", ["one_class", "distinct", "ragged"])
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_missing_sides(backend, device, name, n, labels):
    """What a query without positives or without negatives costs, alone or in a whole batch, is the formula's."""
    pairs = make_pairs("random", 12, n, 5, 6, torch.float64, seed=2, labels=labels, device=device)
    if n is not None and labels == "distinct":
        pairs.ref_labels.add_(100)
    outcome = check_brute_force(CASES[name], pairs)
    if labels == "ragged" or (name in KEEP_POSITIVES if labels == "one_class" else name in KEEP_NEGATIVES):
        assert outcome.value.item() > 0
    else:
        assert outcome.value.item() == 0
        assert not any(bool(grad.any()) for grad in outcome.grads)


@pytest.mark.parametrize("name", ["lifted", "lifted_easy"])
def test_lifted_queries_at_zero(backend, device, name):
    """Some queries cost nothing, and count in the mean."""
    pairs = make_pairs("random", 14, 13, 5, 4, torch.float64, seed=2, device=device)
    case = CASES[name]._replace(options={**CASES[name].options, "neg_margin": -2.0 if name in EASY else -3.35})
    rows, size, _ = case.oracle(problem_of(pairs), **case.options)
    assert 2 < sum(cost == 0 for cost, _ in rows) < 12
    assert size == 14
    check_brute_force(case, pairs)


@pytest.mark.parametrize("m, n", [(0, None), (0, 5), (5, 0), (1, None)])
@pytest.mark.parametrize("name", CASES)
def test_no_pairs(backend, device, name, m, n):
    pairs = make_pairs("random", m, n, d=4, device=device)
    outcome = evaluate(bound_to(CASES[name], pairs), tensors(pairs))
    assert outcome.value.shape == ()
    assert outcome.value.item() == 0
    assert not any(bool(grad.any()) for grad in outcome.grads)


@pytest.mark.parametrize("n", contract.thinned([None, 140], None), ids=["self", "reference"])
@pytest.mark.parametrize("name", contract.thinned(CASES, *KINDS))
def test_every_dtype(kernel, device, dtype, name, n):
    case = CASES[name]
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=4, device=device)
    # Scores reach 20 to 40 here, so that a weight is off by as many eps.
    more = {"epsilon": None} if name in MINED else {}  # which pairs are mined is a matter of rounding
    assert_matches(bound_to(case, pairs, **more), tensors(pairs), scale=4.0, exponent=40.0, max_quiet=0.5)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", contract.thinned((name for name in CASES if not name.startswith("circle")), "multi_similarity")
)
def test_gradcheck(backend, device, name):
    """The factors of circle loss are constants of the gradient, which differences cannot check."""
    pairs = make_pairs("random", 7, 6, 4, 3, torch.float64, seed=6, device=device)
    leaves = [t.requires_grad_() for t in tensors(pairs)]
    assert torch.autograd.gradcheck(bound_to(CASES[name], pairs), leaves)


@pytest.mark.parametrize("name", ["ntxent", "ntxent_easy", "supcon", "supcon_easy", "ep", "nca", "circle_easy"])
def test_converged_batch(backend, device, name):
    """Losses far below eps of 1 keep their relative accuracy: nothing is subtracted from 1, no sum from a maximum."""
    pairs = make_pairs("orthogonal", 12, None, 6, 6, torch.float64, labels="sorted", device=device)
    place = torch.arange(12, device=device) // 2
    noise = 0.01 * torch.randn(12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(device)
    exact = torch.eye(6, dtype=torch.float64, device=device)[place] + noise
    pairs = pairs._replace(embeddings=exact, labels=place)
    case = CASES[name]
    sharp = {"gamma": 256.0, "m": 0.25} if "circle" in name else {"temperature": 0.03}
    case = case._replace(options={**case.options, **sharp})
    truth = check_brute_force(case, pairs)
    expected = truth.value.item()
    assert 1e-15 < expected < 1e-9
    actual = evaluate(bound_to(case, pairs), [exact.float()], torch.ones((), device=device))
    assert actual.value.item() == pytest.approx(expected, rel=2e-4)
    size = float(truth.grads[0].abs().max())
    torch.testing.assert_close(actual.grads[0].double(), truth.grads[0], rtol=0, atol=1e-3 * size)


@pytest.mark.parametrize("name", ["ntxent", "ntxent_easy", "supcon", "supcon_easy", "ep", "ephn", "nca"])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_low_temperature(backend, device, name, normalize):
    """Scores of up to 100 on unit rows and of hundreds on others overflow no exponential, in float32 either."""
    case = CASES[name]
    pairs = make_pairs("random", 24, 20, 6, 4, torch.float64, seed=8, device=device)
    options = {"temperature": 0.01 if normalize else 0.05, "normalize": normalize}
    truth = evaluate(bound_to(case, pairs, **options), tensors(pairs), torch.ones((), device=device))
    actual = evaluate(
        bound_to(case, pairs, **options), [t.float() for t in tensors(pairs)], torch.ones((), device=device)
    )
    assert truth.value.item() > 1
    assert actual.value.item() == pytest.approx(truth.value.item(), rel=1e-5)
    for got, expected in zip(actual.grads, truth.grads):
        assert bool(expected.any())
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_non_finite(backend, device, name):
    """A NaN or Inf row that takes part makes the loss NaN; one that is ignored makes none."""
    case = CASES[name]
    pairs = make_pairs("random", 20, 18, 6, 4, device=device)
    for rows, bad in ((pairs.embeddings, torch.inf), (pairs.ref_emb, torch.nan)):
        kept = rows[7, 2].item()
        rows[7, 2] = bad
        assert bool(bound_to(case, pairs)(*tensors(pairs)).isnan())
        with pytest.raises((ValueError, RuntimeError), match=r"must be finite"):
            bound_to(case, pairs, check_finite=True)(*tensors(pairs))
        label = int((pairs.labels if rows is pairs.embeddings else pairs.ref_labels)[7])
        outcome = evaluate(bound_to(case, pairs, ignore_index=label), tensors(pairs))
        assert bool(outcome.value.isfinite())
        assert all(bool(grad.isfinite().all()) for grad in outcome.grads)
        rows[7, 2] = kept
    alone = make_pairs("random", 20, None, 6, 4, device=device)
    alone.embeddings[3, 0] = torch.nan
    assert bool(module_of(case.build(), alone)(alone.embeddings).isnan())


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("n", [None, 15], ids=["self", "reference"])
def test_every_listed_pair_is_the_loss(backend, device, name, n):
    pairs = make_pairs("random", 20, n, 6, 5, torch.float64, seed=9, device=device)
    for normalize in (True, False):
        module = CASES[name].build(normalize=normalize)
        listed = evaluate(module_of(module, pairs, all_pairs(pairs)), tensors(pairs))
        stats = module.last_stats
        contract.assert_close(listed, evaluate(module_of(module, pairs), tensors(pairs)), factor=1e5)
        for key, value in module.last_stats.items():
            assert float(stats[key]) == pytest.approx(float(value))


@pytest.mark.parametrize("name", LISTED)
def test_empty_lists(backend, device, name):
    pairs = make_pairs("random", 10, d=4, device=device)
    none = torch.empty(0, dtype=torch.int64, device=device)
    for indices in ((none,) * 3, (none,) * 4):
        outcome = evaluate(module_of(CASES[name].build(), pairs, indices), [pairs.embeddings])
        assert outcome.value.item() == 0
        assert not outcome.grads[0].any()


@pytest.mark.parametrize("negative", ["hard", "semihard"])
def test_mined_triplets_listed_are_the_mined_loss(backend, device, negative):
    """EPHN and EPSHN by a miner's list and by words; words beside a list are refused."""
    pairs = make_pairs("random", 30, None, 6, 5, torch.float64, seed=10, device=device)
    indices = miners.PairMiner("easy", negative)(*pairs[:2])
    words = losses.NCALoss(softmax_scale=5, positive="easy", negative=negative)
    listed = evaluate(module_of(losses.NCALoss(softmax_scale=5), pairs, indices), tensors(pairs))
    contract.assert_close(listed, evaluate(module_of(words, pairs), tensors(pairs)), factor=4096.0)
    with pytest.raises(ValueError, match=f"NCALoss: indices_tuple must be None with negative='{negative}'"):
        words(*pairs[:2], indices)


@pytest.mark.parametrize("n", [None, 15], ids=["self", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_statistics(backend, device, name, n):
    """Counts and means of the pairs that take part, detached."""
    case = CASES[name]
    pairs = make_pairs("random", 30, n, 6, 5, torch.float64, seed=11, device=device)
    module = case.build()
    module_of(module, pairs)(*(t.requires_grad_() for t in tensors(pairs)))
    p = problem_of(
        pairs._replace(embeddings=pairs.embeddings.detach(), ref_emb=None if n is None else pairs.ref_emb.detach())
    )
    rows, _, metric = case.oracle(p, **case.options)
    sides: dict[bool, list[float]] = {True: [], False: []}
    for i, (_, slopes) in enumerate(rows):
        for j in slopes:
            value = float(p.f[i] @ p.e[j]) if metric == "cosine" else p.d[i][j]
            sides[p.y[i] == p.h[j]].append(value**2 if case.module is losses.NCALoss else value)
    word = {"cosine": "similarity", "euclidean": "distance"}[metric]
    word = "squared_distance" if case.module is losses.NCALoss else word
    stats = module.last_stats
    assert set(stats) == {"active_positives", "active_negatives", f"mean_pos_{word}", f"mean_neg_{word}"}
    assert not any(value.requires_grad or value.shape for value in stats.values())
    if name.startswith("lifted"):
        # A query whose cost is 0 has no slopes in the loops, while its pairs take part.
        sides = {same: [p.d[i][j] for i in range(30) for j in side(p, i, name in EASY)] for same, side in SIDES.items()}
    assert int(stats["active_positives"]) == len(sides[True])
    assert int(stats["active_negatives"]) == len(sides[False])
    assert float(stats[f"mean_pos_{word}"]) == pytest.approx(np.mean(sides[True]))
    assert float(stats[f"mean_neg_{word}"]) == pytest.approx(np.mean(sides[False]))


SIDES = {
    True: lambda p, i, easy: [p.nearest(i, p.positives(i))] if easy else p.positives(i),
    False: lambda p, i, easy: p.negatives(i),
}


@pytest.mark.parametrize("name", CASES)
def test_one_end_learns(backend, device, name):
    """Gradients of one end alone are those of both."""
    pairs = make_pairs("random", 20, 18, 6, 5, torch.float64, seed=12, device=device)
    function, (x, g) = bound_to(CASES[name], pairs), tensors(pairs)
    both = evaluate(function, [x, g], torch.ones((), device=device)).grads
    for k, alone in enumerate((lambda x: function(x, g), lambda g: function(x, g))):
        torch.testing.assert_close(evaluate(alone, [[x, g][k]], torch.ones((), device=device)).grads[0], both[k])


@pytest.mark.parametrize("name", contract.thinned(KINDS, "ntxent"))
def test_compile_and_double_backward(kernel, device, name):
    pairs = make_pairs("random", 40, d=6, device=device)
    contract.check_compiled(module_of(CASES[name].build(), pairs), [pairs.embeddings])
    contract.check_no_double_backward(bound_to(CASES[name], pairs), pairs.embeddings)


@pytest.mark.parametrize("name", KINDS)
def test_autocast_changes_nothing(backend, device, name):
    pairs = make_pairs("random", 30, d=6, device=device)
    function = bound_to(CASES[name], pairs)

    def under_autocast(x):
        with torch.autocast(device, dtype=torch.bfloat16):
            return function(x)

    contract.assert_identical(evaluate(under_autocast, [pairs.embeddings]), evaluate(function, [pairs.embeddings]))


@pytest.mark.parametrize("name", KINDS)
def test_strided_and_mixed_dtypes(backend, device, name):
    """Any strides, any integers for labels, and a gallery of another dtype."""
    pairs = make_pairs("random", 20, 18, 6, 5, seed=13, device=device)
    expected = bound_to(CASES[name], pairs)(*tensors(pairs))
    odd = pairs._replace(
        labels=contract.strided(pairs.labels).to(torch.int32), ref_labels=pairs.ref_labels.to(torch.uint8)
    )
    for view in contract.VIEWS.values():
        torch.testing.assert_close(bound_to(CASES[name], odd)(*(view(t) for t in tensors(odd))), expected)
    mixed = bound_to(CASES[name], pairs)(pairs.embeddings, pairs.ref_emb.double())
    assert mixed.dtype == torch.float64
    torch.testing.assert_close(mixed.float(), expected)
