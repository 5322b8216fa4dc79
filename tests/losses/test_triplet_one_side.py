"""Triplet loss of one pair an anchor with all pairs of the other side, on row statistics: easy|hard × all, all × hard.

Values and gradients are judged as those of the mined words are, in test_losses.py.
"""

from __future__ import annotations

import pytest
import torch
from support import brute_force, contract
from support.pairs import module_of, problem_of, tensors
from support.triplet_losses import ONE_SIDE_WORDS, check_triplet

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import assert_matches, evaluate, make_pairs


@pytest.mark.parametrize("extra", contract.thinned(["plain", "ids", "ignore_index", "soft"], "ignore_index", "soft"))
@pytest.mark.parametrize("n", [None, 11], ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_brute_force(kernel, device, positive, negative, n, extra):
    check_triplet(device, positive, negative, n, extra)


@pytest.mark.parametrize("soft", [False, True], ids=["hinge", "soft"])
@pytest.mark.parametrize("n", contract.thinned([None, 140], None), ids=["self", "reference"])
@pytest.mark.parametrize("positive, negative", contract.thinned(ONE_SIDE_WORDS, ONE_SIDE_WORDS[0], ONE_SIDE_WORDS[2]))
def test_every_dtype(kernel, device, dtype, positive, negative, n, soft):
    """The sum, since which terms are non-zero is a matter of rounding."""
    pairs = make_pairs("random", 130, n, 16, dtype=dtype, seed=6, device=device)

    def total(x, g=None):
        options = {"positive": positive, "negative": negative, "soft": soft, "reduction": "sum", "margin": 0.2}
        return F.triplet_loss(x, pairs.labels, g, pairs.ref_labels, **options)

    # Up to 130 anchors with a hundred terms of size 1 each, whose slopes add up to the pull of the one chosen pair.
    assert_matches(total, tensors(pairs), scale=13000.0, pull=100.0, max_quiet=0.3)


@pytest.mark.heavy
@pytest.mark.large
@pytest.mark.parametrize("soft", [False, True], ids=["hinge", "soft"])
@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_gradcheck(kernel, device, positive, negative, soft):
    """The chosen pair's distance takes part too: it is a bound of the sums."""
    pairs = make_pairs("random", 9, 8, 4, 3, torch.float64, seed=7, device=device)
    leaves = [t.requires_grad_() for t in tensors(pairs)]
    words = {"positive": positive, "negative": negative, "soft": soft, "margin": 0.4}
    function = module_of(losses.TripletMarginLoss(**words), pairs)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_statistics(backend, device, positive, negative):
    pairs = make_pairs("random", 20, d=6, classes=5, dtype=torch.float64, seed=8, device=device)
    module = losses.TripletMarginLoss(positive=positive, negative=negative, margin=0.2)
    module(pairs.embeddings.requires_grad_(), pairs.labels)
    pairs.embeddings.requires_grad_(False)
    p = problem_of(pairs)
    listed = brute_force.triplets(p, positive, negative)
    stats = module.last_stats
    assert not any(v.requires_grad or v.shape for v in stats.values())
    assert int(stats["triplets"]) == len(listed)
    assert int(stats["active_triplets"]) == sum(p.d[a][b] - p.d[a][c] + 0.2 > 0 for a, b, c in listed)


@pytest.mark.parametrize("soft", contract.thinned([False, True], False), ids=["hinge", "soft"])
@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_without_a_triplet(backend, device, positive, negative, soft):
    cases = [make_pairs("random", 12, d=6, labels=labels, device=device) for labels in ("one_class", "distinct")]
    cases += [make_pairs("random", m, n, d=6, device=device) for m, n in ((0, None), (0, 5), (5, 0), (1, None))]
    for pairs in cases:
        for reduction in ("nonzero_mean", "mean", "sum"):
            words = {"positive": positive, "negative": negative, "reduction": reduction, "soft": soft, "margin": 3.0}
            outcome = evaluate(module_of(losses.TripletMarginLoss(**words), pairs), tensors(pairs))
            assert outcome.value.item() == 0
            assert not any(grad.any() for grad in outcome.grads)


@pytest.mark.parametrize("n", [None, 15], ids=["self", "gallery"])
@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_non_finite(backend, device, positive, negative, n):
    pairs = make_pairs("random", 20, n, 6, 4, device=device)
    rows, labels = (pairs.embeddings, pairs.labels) if n is None else (pairs.ref_emb, pairs.ref_labels)
    rows[7, 2] = torch.nan
    words = {"positive": positive, "negative": negative}
    for soft in (False, True):
        assert bool(module_of(losses.TripletMarginLoss(soft=soft, **words), pairs)(*tensors(pairs)).isnan())
    with pytest.raises((ValueError, RuntimeError), match="must be finite"):
        module_of(losses.TripletMarginLoss(check_finite=True, **words), pairs)(*tensors(pairs))
    module = losses.TripletMarginLoss(ignore_index=int(labels[7]), margin=1.0, **words)
    outcome = evaluate(module_of(module, pairs), tensors(pairs))
    assert bool(outcome.value.isfinite())
    assert float(outcome.value) > 0
    assert all(bool(grad.isfinite().all()) for grad in outcome.grads)


def test_ignored_non_finite_rows_leave_no_trace_in_a_swap(backend, device):
    """The row at index 0 stands in for none: it must not reach a gradient."""
    pairs = make_pairs("random", 20, 15, 6, 4, device=device)
    pairs.ref_emb[0] = torch.nan
    pairs.ref_labels[0] = pairs.labels[3] = 9
    module = losses.TripletMarginLoss(positive="easy", negative="hard", swap=True, ignore_index=9)
    outcome = evaluate(module_of(module, pairs), tensors(pairs))
    assert all(bool(grad.isfinite().all()) for grad in (outcome.value, *outcome.grads))


@pytest.mark.parametrize("positive, negative", ONE_SIDE_WORDS)
def test_swap_says_what_to_change(kernel, device, positive, negative):
    pairs = make_pairs("random", 12, d=4, device=device)
    words = f"swap must be False for positive='{positive}' with negative='{negative}', got True; choose easy or hard"
    with pytest.raises(ValueError, match=words):
        F.triplet_loss(*pairs[:2], positive=positive, negative=negative, swap=True)


@pytest.mark.large
def test_compile_and_double_backward(kernel, device):
    pairs = make_pairs("random", 40, d=6, device=device)
    for positive, negative in ONE_SIDE_WORDS:
        module = losses.TripletMarginLoss(positive=positive, negative=negative)
        contract.check_compiled(module_of(module, pairs), [pairs.embeddings])
    module = losses.TripletMarginLoss(positive="easy")
    contract.check_no_double_backward(module_of(module, pairs), pairs.embeddings)
