"""The log-sum-exp losses as they are called: names, defaults, messages, settings that are shown."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from support import contract
from support.logsumexp_cases import CASES, KINDS

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import make_pairs

# The options of a function with their defaults, and those of its module.
DEFAULTS = {
    F.multi_similarity_loss: (
        losses.MultiSimilarityLoss,
        {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": None, "positive": "all"},
        None,
    ),
    F.ntxent_loss: (losses.NTXentLoss, {"temperature": 0.07, "positive": "all"}, None),
    F.supcon_loss: (losses.SupConLoss, {"temperature": 0.1, "positive": "all"}, None),
    F.circle_loss: (losses.CircleLoss, {"m": 0.4, "gamma": 80.0, "positive": "all"}, None),
    F.lifted_loss: (
        losses.GeneralizedLiftedStructureLoss,
        {"neg_margin": 1.0, "pos_margin": 0.0, "positive": "all"},
        None,
    ),
    F.nca_loss: (
        losses.NCALoss,
        {"temperature": 0.1, "positive": "easy", "negative": "all"},
        {"softmax_scale": 1.0, "positive": "all", "negative": "all"},
    ),
}
END = {"normalize": True, "ids": None, "ref_ids": None, "ignore_index": None, "check_finite": False}
FUNCTIONS = pytest.mark.parametrize("function", DEFAULTS, ids=lambda f: f.__name__)


def defaults_of(function, kind):
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind == kind}


@FUNCTIONS
def test_defaults(backend, device, function):
    module, options, of_module = DEFAULTS[function]
    assert defaults_of(function, inspect.Parameter.KEYWORD_ONLY) == {**options, **END}
    start = defaults_of(function, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert list(start) == ["embeddings", "labels", "ref_emb", "ref_labels"]
    of_module = of_module or options
    built = defaults_of(module.__init__, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    assert {name: value for name, value in built.items() if name != "self"} == of_module
    pairs = make_pairs("random", 20, d=6, classes=4, device=device)
    spelled = function(*pairs[:2], **{**options, **END})
    assert torch.equal(function(*pairs[:2]), spelled)
    if function is F.nca_loss:
        spelled = function(*pairs[:2], temperature=0.5, positive="all", negative="all")
    assert torch.equal(module()(*pairs[:2]), spelled)
    assert torch.equal(module(*of_module.values())(*pairs[:2]), spelled)
    assert function.__name__ in F.__all__
    assert module.__name__ in losses.__all__


@pytest.mark.parametrize("name", KINDS)
def test_settings_are_shown(name):
    module = CASES[name].build(normalize=False)
    shown = repr(module)
    assert "normalize=False" in shown
    for option in inspect.signature(type(module).__init__).parameters:
        if option not in ("self", "options"):
            assert f"{option}=" in shown


BAD: dict[Any, list[tuple[dict, str]]] = {
    F.multi_similarity_loss: [
        ({"alpha": 0}, "alpha must be a positive number, got 0"),
        ({"beta": -1.0}, "beta must be a positive number, got -1.0"),
        ({"base": float("nan")}, "base must be a finite number, got nan"),
        ({"epsilon": "0.1"}, "epsilon must be a finite number, got '0.1'"),
    ],
    F.ntxent_loss: [({"temperature": 0.0}, "temperature must be a positive number, got 0.0")],
    F.supcon_loss: [({"temperature": float("inf")}, "temperature must be a positive number, got inf")],
    F.circle_loss: [
        ({"m": None}, "m must be a finite number, got None"),
        ({"gamma": True}, "gamma must be a positive number, got True"),
    ],
    F.lifted_loss: [
        ({"neg_margin": float("inf")}, "neg_margin must be a finite number, got inf"),
        ({"pos_margin": "0"}, "pos_margin must be a finite number, got '0'"),
    ],
    F.nca_loss: [
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"negative": "easy"}, "negative must be 'all' or 'hard' or 'semihard', got 'easy'"),
        (
            {"positive": "all", "negative": "semihard"},
            "negative must be 'all' or 'hard' with positive='all' (semi-hard is relative to one positive), "
            "got 'semihard'",
        ),
    ],
}


@FUNCTIONS
def test_messages(backend, device, function):
    x, y = torch.randn(6, 4, device=device), torch.arange(6, device=device) // 2
    op, words = function.__name__ + ": ", "'easy' or 'all'" if function is F.nca_loss else "'all' or 'easy'"
    contract.check_messages(
        function,
        {"embeddings": x, "labels": y},
        [
            *((change, op + text) for change, text in BAD[function]),
            ({"positive": "hard"}, op + f"positive must be {words}, got 'hard'"),
            ({"labels": y[:5]}, op + "labels must be (M,) with M=6, got (5,)"),
            (
                {"labels": x[:, 0]},
                op + "labels must be a (M,) tensor of integers (one class per row), got torch.float32",
            ),
            ({"embeddings": x[0]}, op + "embeddings must be (M, D), got (4,)"),
            ({"ref_emb": x}, op + "ref_labels must be given with ref_emb, got None"),
            ({"ignore_index": 1.0}, op + "ignore_index must be an int or None, got 1.0"),
        ],
    )


@FUNCTIONS
def test_messages_of_the_module(function):
    module = DEFAULTS[function][0]
    x, y = torch.randn(6, 4), torch.arange(6) // 2
    with pytest.raises(ValueError, match=f"^{module.__name__}: positive must be"):
        module(positive="hard")
    with pytest.raises(ValueError, match=f"^{module.__name__}: indices_tuple must be"):
        module()(x, y, (y, y))
    with pytest.raises(ValueError, match=f"^{module.__name__}: labels must be"):
        module()(x, y[:4])
