"""The words of triplet loss, and the check of it against the list of its triplets."""

from __future__ import annotations

import pytest
import torch
from support import brute_force, contract
from support.pairs import ids_of, module_of, problem_of, tensors

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate, make_pairs

KERNEL_WORDS = [(p, n) for p in ("easy", "hard") for n in ("hard", "semihard")]
ALL_WORDS = [(p, n) for p in ("easy", "hard", "all") for n in ("hard", "semihard", "all")]
ONE_SIDE_WORDS = [("easy", "all"), ("hard", "all"), ("all", "hard")]  # one pair an anchor with all of the other side


def check_triplet(device, positive, negative, n, extra):
    pairs = make_pairs("random", 14, n, 5, 3, torch.float64, seed=5, device=device)
    more = {}
    if extra == "ids":
        more = ids_of(pairs)
    elif extra == "ignore_index":
        more = {"ignore_index": 1}
    shape = {extra: True} if extra in ("swap", "soft") else {}
    p = problem_of(pairs, **{k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in more.items()})
    listed = brute_force.triplets(p, positive, negative)
    assert listed
    indices = tuple(torch.tensor(column, device=device) for column in zip(*listed))
    words = {"positive": positive, "negative": negative}
    for reduction in ("nonzero_mean", "mean", "sum"):
        expected = brute_force.triplet_loss(p, listed, 0.3, reduction=reduction, **shape)

        def function(x, g=None, reduction=reduction):
            options = {"margin": 0.3, "reduction": reduction, **words, **shape, **more}
            return F.triplet_loss(x, pairs.labels, g, pairs.ref_labels, **options)

        outcome = evaluate(function, tensors(pairs), torch.ones((), device=device))
        assert outcome.value.item() == pytest.approx(expected, rel=1e-12)
        # The same triplets listed: another way to the same gradient.
        module = losses.TripletMarginLoss(margin=0.3, reduction=reduction, **shape)
        other = evaluate(module_of(module, pairs, indices), tensors(pairs), torch.ones((), device=device))
        contract.assert_close(other, outcome, factor=4096.0)
        options = {"ignore_index": 1} if extra == "ignore_index" else {}
        module = losses.TripletMarginLoss(margin=0.3, reduction=reduction, **words, **shape, **options)
        ids = more if extra == "ids" else {}
        contract.assert_identical(
            evaluate(module_of(module, pairs, **ids), tensors(pairs), torch.ones((), device=device)), outcome
        )
