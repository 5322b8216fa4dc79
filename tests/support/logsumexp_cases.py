"""The losses made of log-sum-exps with their options, for the tests of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import logsumexp_oracles as oracles
from support.pairs import problem_of, tensors

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import Outcome, Pairs, evaluate


class Case(NamedTuple):
    function: Callable[..., Any]
    module: type[torch.nn.Module]
    oracle: Callable[..., Any]
    options: dict[str, Any]

    def build(self, **more: Any) -> torch.nn.Module:
        """The module with the options of the function."""
        options = {**self.options, **more}
        if self.module is losses.NCALoss:
            options["softmax_scale"] = 1 / (2 * options.pop("temperature"))
        return self.module(**options)


_FAMILIES = {
    "multi_similarity": (F.multi_similarity_loss, losses.MultiSimilarityLoss, oracles.multi_similarity),
    "ntxent": (F.ntxent_loss, losses.NTXentLoss, oracles.ntxent),
    "supcon": (F.supcon_loss, losses.SupConLoss, oracles.supcon),
    "circle": (F.circle_loss, losses.CircleLoss, oracles.circle),
    "lifted": (F.lifted_loss, losses.GeneralizedLiftedStructureLoss, oracles.lifted),
    "nca": (F.nca_loss, losses.NCALoss, oracles.nca),
}

_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "multi_similarity": ("multi_similarity", {"alpha": 3.0, "beta": 20.0, "base": 0.3}),
    "multi_similarity_easy": ("multi_similarity", {"positive": "easy"}),
    "multi_similarity_mined": ("multi_similarity", {"epsilon": -0.2, "beta": 10.0}),
    "multi_similarity_mined_easy": ("multi_similarity", {"epsilon": 0.1, "beta": 10.0, "positive": "easy"}),
    "ntxent": ("ntxent", {"temperature": 0.2}),
    "ntxent_easy": ("ntxent", {"temperature": 0.2, "positive": "easy"}),
    "supcon": ("supcon", {"temperature": 0.2}),
    "supcon_easy": ("supcon", {"temperature": 0.2, "positive": "easy"}),
    "circle": ("circle", {"m": 0.25, "gamma": 16.0}),
    "circle_easy": ("circle", {"m": 0.25, "gamma": 16.0, "positive": "easy"}),
    "lifted": ("lifted", {"neg_margin": 0.8, "pos_margin": 0.2}),
    "lifted_easy": ("lifted", {"neg_margin": 0.8, "pos_margin": 0.2, "positive": "easy"}),
    "nca": ("nca", {"temperature": 0.3, "positive": "all"}),
    "ep": ("nca", {"temperature": 0.3, "positive": "easy"}),
    "ephn": ("nca", {"temperature": 0.3, "positive": "easy", "negative": "hard"}),
    "epshn": ("nca", {"temperature": 0.3, "positive": "easy", "negative": "semihard"}),
    "nca_hard": ("nca", {"temperature": 0.3, "positive": "all", "negative": "hard"}),
}

CASES = {name: Case(*_FAMILIES[family], options) for name, (family, options) in _OPTIONS.items()}
EASY = [name for name, case in CASES.items() if case.options.get("positive") == "easy"]
MINED = [name for name in CASES if "mined" in name]
# One of each formula, for what does not depend on the rest.
KINDS = ("multi_similarity_mined", "ntxent", "supcon", "circle", "lifted", "nca", "epshn")


def bound_to(case: Case, pairs: Pairs, **more: Any) -> Callable[..., Any]:
    """The function of the embeddings, and of the gallery if there is one."""
    return lambda x, g=None: case.function(x, pairs.labels, g, pairs.ref_labels, **{**case.options, **more})


def check_brute_force(case: Case, pairs: Pairs, ids: dict[str, torch.Tensor] | None = None, **more: Any) -> Outcome:
    """The function's value and gradients, which are those of the loops."""
    ids = ids or {}
    p = problem_of(pairs, **more, **{k: v.tolist() for k, v in ids.items()})
    expected, grads = oracles.value_and_gradients(p, case.oracle, **case.options)
    one = torch.ones((), device=pairs.labels.device)
    outcome = evaluate(bound_to(case, pairs, **more, **ids), tensors(pairs), one)
    assert outcome.value.item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    for got, wanted in zip(outcome.grads, grads, strict=True):
        np.testing.assert_allclose(got.cpu().numpy(), wanted, rtol=1e-9, atol=1e-11 * max(1.0, np.abs(wanted).max()))
    return outcome
