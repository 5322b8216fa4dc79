"""Every option of every public callable: it works with a finite result, or a sentence says what it must be.

Options are found by the constructors' and functions' signatures, so a new one is met here without being listed.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.every_loss import ROWS, make
from torch import nn

from dmlkernels import data, losses, metrics, miners, samplers
from dmlkernels import functional as F
from dmlkernels._options import options

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(12) // 3
PROXIES = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NO_NUMBER = [float("nan"), float("inf"), -float("inf"), "1", True, [1.0], 1j, torch.tensor(0.5), torch.tensor(1)]
NUMBERS = [-3, -0.5, 0, 0.3, 1, 2, np.float32(0.3), np.float64(0.3), np.int64(2), np.int32(1), None]


class Callee(NamedTuple):
    call: Callable[..., Any]
    signature: Mapping[str, inspect.Parameter]
    op: str


def _of_loss(name: str) -> Callee:
    def call(**given: Any) -> Any:
        sizes = {size: {"num_classes": 4, "embedding_size": 6}[size] for size in ROWS[name].sizes}
        return ROWS[name].type(**{**sizes, **given}).double()(X, Y)

    return Callee(call, ROWS[name].arguments, name)


def _of_function(name: str, *arguments: Any, **fixed: Any) -> Callee:
    function = getattr(F, name)
    return Callee(
        lambda **given: function(*arguments, **{**fixed, **given}), inspect.signature(function).parameters, name
    )


def _around(name: str, **fixed: Any) -> Callee:
    loss = getattr(losses, name)

    def call(**given: Any) -> Any:
        torch.manual_seed(0)
        base = losses.ProxyAnchorLoss(4, 6) if name != "CrossBatchMemory" else losses.RankedListLoss()
        return loss(base, **{**fixed, **given}).double()(X, Y)

    return Callee(call, inspect.signature(loss).parameters, name)


def _epoch(**given: Any) -> None:
    losses.SphericalExpansionLoss(losses.RankedListLoss()).set_epoch(**{"epoch": 1, "total": 10, **given})


CALLEES = {name: _of_loss(name) for name in ROWS}
CALLEES |= {
    str(row.function): _of_function(str(row.function), X, Y, *([PROXIES] if row.proxies else []))
    for row in ROWS.values()
    if row.function is not None
}
CALLEES |= {
    "soft_triple_loss": _of_function("soft_triple_loss", X, Y, PROXIES, centers_per_class=1),
    "margin_loss, drawn": _of_function("margin_loss", X, Y, negative="distance_weighted"),
    "anti_collapse_loss": _of_function("anti_collapse_loss", X, form="exp_neg_rate", rate_weight=0.1),
    "coding_rate": _of_function("coding_rate", X),
    "class_coding_rate": _of_function("class_coding_rate", X, Y),
    "coding_rate_reduction": _of_function("coding_rate_reduction", X, Y),
    "spherical_expansion": _of_function("spherical_expansion", X, Y, n=2),
    "max_mahalanobis_centers": _of_function("max_mahalanobis_centers", n=2),
    "pairwise_similarity": _of_function("pairwise_similarity", X),
    "pairwise_distance": _of_function("pairwise_distance", X),
    "cholesky_logdet": _of_function("cholesky_logdet", torch.eye(3)),
    "merge_classes": Callee(
        lambda **given: data.merge_classes(Y, **{"group": 2, "seed": 0, **given}),
        inspect.signature(data.merge_classes).parameters,
        "merge_classes",
    ),
    "nearest_positive": _of_function("nearest_positive", X, Y),
    "mine": _of_function("mine", X, Y),
    "AntiCollapseLoss": _around("AntiCollapseLoss"),
    "SphericalExpansionLoss": _around("SphericalExpansionLoss", n=2),
    "CrossBatchMemory": _around("CrossBatchMemory", embedding_size=6, memory_size=20),
    "set_epoch": Callee(_epoch, inspect.signature(losses.SphericalExpansionLoss.set_epoch).parameters, "set_epoch"),
    "PairMiner": Callee(
        lambda **given: miners.PairMiner(**given)(X, Y), inspect.signature(miners.PairMiner).parameters, "PairMiner"
    ),
    "ClassBalancedSampler": Callee(
        lambda **given: list(
            samplers.ClassBalancedSampler(Y, **{"classes_per_batch": 2, "samples_per_class": 2, **given})
        ),
        inspect.signature(samplers.ClassBalancedSampler).parameters,
        "ClassBalancedSampler",
    ),
    "retrieval": Callee(
        lambda **given: metrics.retrieval(X, Y, **given), inspect.signature(metrics.retrieval).parameters, "retrieval"
    ),
    "neighbors": Callee(
        lambda **given: metrics.neighbors(X, **{"k": 2, **given}),
        inspect.signature(metrics.neighbors).parameters,
        "neighbors",
    ),
    "singular_values": Callee(
        lambda **given: metrics.singular_values(X, **given),
        inspect.signature(metrics.singular_values).parameters,
        "singular_values",
    ),
}
NO_OPTION = {
    "self", "x", "y", "A", "embeddings", "labels", "ref_emb", "ref_labels", "ids", "ref_ids", "z", "proxies",
    "centers", "noise", "generator", "uniforms", "index", "base_loss", "loss", "gallery", "gallery_labels", "options",
}  # fmt: skip
SIZES = {"num_classes", "embedding_size", "centers_per_class"}  # the sentence is about the rows that do not fit
KNOWN = [
    pytest.param(callee, option, id=f"{name}-{option}")
    for name, callee in CALLEES.items()
    for option in callee.signature
    if option not in NO_OPTION
]


def test_every_public_callable_is_here() -> None:
    public = {name for module in (F, losses, miners, metrics, samplers) for name in module.__all__}
    without_options = {"Expansion", "Mined", "NearestPositive", "MultiHead"}
    assert public - without_options == {name.partition(",")[0] for name in CALLEES} - {"set_epoch", "merge_classes"}


def finite(result: Any) -> bool:
    if isinstance(result, torch.Tensor):
        return not bool(result.detach().isnan().any())
    if isinstance(result, Mapping):
        return all(math.isfinite(value) for value in result.values())
    return all(finite(part) for part in result) if isinstance(result, (tuple, list)) else True


def refused(callee: Callee, option: str, value: Any) -> bool:
    """Whether the value is refused, with a sentence that says where, what, and what it got."""
    try:
        result = callee.call(**{option: value})
    except ValueError as error:
        sentence = str(error)
    else:
        assert finite(result), f"{option}={value!r} passes, and gives {result}"
        return False
    assert re.fullmatch(r"[\w.]+: .+ must be .+, got .+", sentence, re.DOTALL), sentence
    assert option in sentence or option in SIZES, sentence
    return True


@pytest.mark.parametrize("callee, option", KNOWN)
def test_a_value_works_or_is_refused_with_a_sentence(callee, option):
    for value in [*NO_NUMBER, *NUMBERS]:
        refused(callee, option, value)


@pytest.mark.parametrize("callee, option", KNOWN)
def test_what_is_no_number_is_refused(callee, option):
    default = callee.signature[option].default
    for value in NO_NUMBER:
        is_flag = isinstance(default, bool) and isinstance(value, bool)
        is_tensor_of_betas = option == "beta" and callee.op == "margin_loss" and isinstance(value, torch.Tensor)
        is_list = option == "ks" and isinstance(value, list)
        if not (is_flag or is_tensor_of_betas or is_list):
            assert refused(callee, option, value), f"{option}={value!r} passes"


@pytest.mark.parametrize("callee, option", KNOWN)
def test_numpy_numbers_are_numbers(callee, option):
    """Where Python's number is taken, numpy's is, with the same result."""
    for number, others in ((2, (np.int64(2), np.int32(2), np.uint8(2))), (0.5, (np.float32(0.5), np.float64(0.5)))):
        taken = not refused(callee, option, number)
        for other in others:
            assert refused(callee, option, other) != taken, f"{option}={other!r}"


@pytest.mark.parametrize("name", ROWS)
def test_an_option_is_an_attribute_that_is_read_at_each_call(name):
    """Set one after the other, the options of every sample give what the constructor gives; a wrong one is refused."""
    for sample in ROWS[name].samples:
        fixed = {k: v for k, v in sample.items() if k in ("learn_beta", "num_classes", "centers_per_class")}
        if name == "MarginLoss":
            fixed |= {k: v for k, v in sample.items() if k == "beta"}
        built, changed = make(name, width=6, **sample).double(), make(name, width=6, **fixed).double()
        before = changed(X, Y)
        for option, value in sample.items():
            if option not in fixed:
                setattr(changed, option, value)
        for loss in (built, changed):
            torch.manual_seed(0)
            loss(X, Y)
        torch.manual_seed(0)
        after = changed(X, Y)
        torch.manual_seed(0)
        assert torch.equal(after, built(X, Y))
        assert repr(changed) == repr(built)
        assert before.shape != after.shape or not torch.equal(before, after), f"{sample} has no effect"


@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_attribute_is_refused_when_it_is_set(name):
    loss = make(name)
    for option in options(type(loss)):
        kept = getattr(loss, option)
        for value in (float("nan"), [0.5], nn.Parameter(torch.tensor(0.5)), nn.Linear(1, 1)):
            with pytest.raises(ValueError, match=f"{name}: {option} must be .*, got "):
                setattr(loss, option, value)
        assert getattr(loss, option) == kept
    assert not [k for k, _ in loss.named_parameters() if k in options(type(loss))]


def test_a_derived_default_stays_derived():
    loss = losses.RankedListLoss()
    loss.margin = 0.8
    assert torch.equal(loss(X, Y), losses.RankedListLoss(margin=0.8)(X, Y))
    loss.form = "cvpr"
    assert torch.equal(loss(X, Y), losses.RankedListLoss(margin=0.8, form="cvpr")(X, Y))
    around = losses.AntiCollapseLoss(losses.RankedListLoss())
    around.form, around.rate_weight = "exp_neg_rate", 0.1
    other = losses.AntiCollapseLoss(losses.RankedListLoss(), form="exp_neg_rate", rate_weight=0.1)
    assert torch.equal(around(X, Y), other(X, Y))


def test_words_that_exclude_each_other_are_refused_at_the_call():
    loss = losses.NCALoss()
    loss.negative = "semihard"
    with pytest.raises(ValueError, match="NCALoss: negative must be 'all' or 'hard' with positive='all'"):
        loss(X, Y)
    expansion = losses.SphericalExpansionLoss(losses.RankedListLoss(), n=2)
    expansion.min_fraction = 0.9
    with pytest.raises(ValueError, match="min_fraction, max_fraction must be"):
        expansion(X, Y)


def test_sizes_stay():
    for name, option in (("ProxyAnchorLoss", "num_classes"), ("SoftTripleLoss", "centers_per_class")):
        with pytest.raises(ValueError, match=f"{name}: {option} must be left at"):
            setattr(make(name), option, 3)
