"""The contract of every operator: what its text says, and that each fault of a call gives one error everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import operators as calls
from support.targets import Target
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlkernels import _contract, _verify
from dmlkernels._contract import OPERATORS, Argument, Operator

OTHER_DTYPE = {"int64": torch.int32, "uint8": torch.int64, "float64": torch.float32}
ODD = {"Tensor? y (M, D": "a shape", "Tensor y (M,) int64; above 3": "a clause", "Tensor y of x": "a dtype"}


# The text.


@pytest.mark.parametrize("line", ODD, ids=ODD.get)
def test_a_line_that_says_nothing_is_refused(line):
    with pytest.raises(SyntaxError, match="a line of the contract: "):
        Operator.of("odd_fwd", line)


def test_the_module_needs_no_torch():
    """The build reads it."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import _contract; print('torch' in sys.modules)"
    folder = Path(_contract.__file__).parent
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("op", calls.BACKWARDS)
def test_a_backward_is_told_by_name(op):
    """It takes nothing that its forward has not, and gives gradients of its arguments."""
    forward = OPERATORS[op.replace("_bwd", "_fwd")]
    of_results = [a for a in OPERATORS[op].arguments if a.gradient_of and a.type == "Tensor"]
    assert {a.gradient_of for a in of_results} <= {r.name for r in forward.results}
    given = {*forward.names, *(r.name for r in forward.results)}
    assert {a.name for a in OPERATORS[op].arguments if not a.gradient_of} <= given
    assert {r.gradient_of for r in OPERATORS[op].results} <= set(forward.names)


@pytest.mark.parametrize("reference", [True, False], ids=["reference", "self"])
@pytest.mark.parametrize("op", OPERATORS)
def test_results_are_what_the_text_says(kernel, op, reference):
    for dtype in (torch.float64, torch.float32) if op.startswith("cholesky") else (torch.float64, torch.float16):
        known = calls.arguments(op, kernel, dtype, reference)
        found = getattr(kernel.operators, op)(**known)
        found = found if isinstance(found, tuple) else (found,)
        said = [(shape, name) for _, shape, name in _verify.results(op, known)]
        assert [(tuple(x.shape), str(x.dtype)[6:]) for x in found] == said


# Faults of a call.


def faults(op: str, known: dict[str, Any], numbers: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each a name and the arguments that it changes.

    Args:
        numbers: what tensors hold too.
    """
    alone = sum(isinstance(v, torch.Tensor) for v in known.values()) == 1
    held = [size for a in OPERATORS[op].arguments if known[a.name] is not None for size in learnt_from(a)]
    needed = {name for a in OPERATORS[op].arguments for name in a.partners}
    for a in OPERATORS[op].arguments:
        x = known[a.name]
        if x is None and a.partners:
            yield f"{a.name} alone", {a.name: torch.zeros(5, dtype=torch.int64)}
        for other, value in a.excluded if x is not None else ():
            yield f"{a.name} with {other} = {value}", {other: value}
        if isinstance(x, torch.Tensor):
            yield f"{a.name} of one more dimension", {a.name: x[None]}
            yield f"{a.name} of another dtype", {a.name: x.to(other_dtype(a, x))}
            if x.ndim and any(held.count(size) > 1 for size in learnt_from(a)[:1]):
                yield f"{a.name} is longer", {a.name: torch.cat([x, x, x[:1]])}
            if x.ndim > 1 and any(held.count(size) > 1 for size in a.shape.dims.sizes[-1].names):
                yield f"{a.name} is wider", {a.name: torch.cat([x, x[..., :1]], -1)}
            if not alone:
                yield f"{a.name} is on another device", {a.name: x.to("meta")}
            if a.optional and (a.partners or a.name in needed):
                yield f"{a.name} is missing", {a.name: None}
            ends = a.interval.ends(_verify.check(op, known)) if a.interval else (None,)
            if numbers and x.numel() > 0 and None not in ends:
                yield f"{a.name} holds what is too low", {a.name: with_first(x, ends[0] - 1)}
                yield f"{a.name} holds what is too high", {a.name: with_first(x, ends[-1])}
            if a.interval and numbers and x.is_floating_point():
                yield f"{a.name} holds NaN", {a.name: with_first(x, torch.nan)}
        elif a.choices:
            yield f"{a.name} is unknown", {a.name: "nonsense"}
        elif a.interval and a.type != "Tensor":
            low, high = a.interval.ends({**known, **_verify.check(op, known)})
            number = float if a.type == "float" else int
            yield f"{a.name} is too low", {a.name: number(low - 1)}
            yield f"{a.name} is too high", {a.name: number(high + 1)}
            if a.type == "float":
                yield f"{a.name} is NaN", {a.name: float("nan")}
        elif a.type == "bool" and a.gradient_of and known[a.gradient_of] is None:
            yield f"{a.name} without {a.gradient_of}", {a.name: True}


def learnt_from(a: Argument) -> list[str]:
    """Names in its sizes, the first one's first."""
    return [name for size in (a.shape.dims.sizes if a.shape else ()) for name in size.names]


def other_dtype(a: Argument, x: torch.Tensor) -> torch.dtype:
    if a.dtype in OTHER_DTYPE:
        return OTHER_DTYPE[a.dtype]
    return torch.float64 if a.like else torch.int64


def with_first(x: torch.Tensor, number: float) -> torch.Tensor:
    x = x.clone()
    x.view(-1)[0] = number
    return x


def error(function: Any, *arguments: Any, **named: Any) -> tuple[type, str] | None:
    try:
        function(*arguments, **named)
    except Exception as raised:
        return type(raised), str(raised)
    return None


@pytest.mark.parametrize("reference", [True, False], ids=["reference", "self"])
@pytest.mark.parametrize("op", OPERATORS)
def test_one_fault_gives_one_error(kernel, op, reference):
    """Of one class, in one sentence, whatever the namespace; the sentences themselves are below."""
    known = calls.arguments(op, kernel, reference=reference)
    operator = getattr(kernel.operators, op)
    operator(**known)
    for name, change in faults(op, known, numbers=not kernel.asynchronous):
        expected = error(_verify.check, op, known | change, read=True)
        assert expected is not None, name
        assert expected[0] is ValueError, (name, expected)
        assert error(operator, **known | change) == expected, name


@pytest.mark.parametrize("reference", [True, False], ids=["reference", "self"])
@pytest.mark.parametrize("op", OPERATORS)
def test_fake_tensors_are_checked_too(op, reference):
    known = calls.arguments(op, Target("native", "cpu"), reference=reference)
    operator = getattr(torch.ops.dmlkernels, op)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = lambda given: {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in given.items()}  # noqa: E731
        operator(**fake(known))
        for name, change in faults(op, known, numbers=False):
            assert error(operator, **fake(known | change)) == error(_verify.check, op, known | change), name


X, Y = torch.ones(6, 4), torch.arange(6)
SENTENCES = [
    ("triplet_fwd", {"embeddings": X[0]}, "triplet: embeddings must be (M, D), got (4,)"),
    (
        "triplet_fwd",
        {"embeddings": X.long()},
        "triplet: embeddings must be float64, float32, bfloat16 or float16, got int64",
    ),
    ("triplet_fwd", {"labels": Y[:5]}, "triplet: labels must be (M,) with M=6, got (5,)"),
    ("triplet_fwd", {"labels": Y.int()}, "triplet: labels must be int64, got int32"),
    ("triplet_fwd", {"ref_emb": X[:, :3]}, "triplet: ref_emb must be (N, D) with D=4, got (6, 3)"),
    ("triplet_fwd", {"ref_emb": X.double()}, "triplet: ref_emb must be float32 like embeddings, got float64"),
    ("triplet_fwd", {"ref_labels": None}, "triplet: ref_labels must be given with ref_emb, and only then, got None"),
    (
        "triplet_fwd",
        {"ids": None},
        "triplet: ref_ids must be given with ref_emb and ids, and only then, got a tensor",
    ),
    ("triplet_fwd", {"negative": "hard"}, "triplet: negative must be 'all' or 'semihard', got 'hard'"),
    ("triplet_fwd", {"labels": Y.to("meta")}, "triplet: labels must be on cpu like embeddings, got meta"),
    (
        "triplet_bwd",
        {"grad_loss_sum": torch.ones(6).double()},
        "triplet_bwd: grad_loss_sum must be float32 for embeddings of float32, got float64",
    ),
    (
        "triplet_bwd",
        {"tile_active": torch.zeros(2, 3, dtype=torch.uint8)},
        "triplet_bwd: tile_active must be (ceil(M/128), ceil(N/128)) with M=6, N=5, got (2, 3)",
    ),
    ("pair_loss_fwd", {"neg_term": "moment"}, "pair_loss: bounds must be None with neg_term = moment, got a tensor"),
    ("pairwise_fwd", {"metric": "cosine"}, "pairwise: metric must be 'dot' or 'euclidean' or 'squared', got 'cosine'"),
    ("spherical_expansion_fwd", {"n": 4}, "spherical_expansion: n must be in [1, D-1] with D=4, got 4"),
    (
        "spherical_expansion_fwd",
        {"noise": torch.ones(6, 3, 4)},
        "spherical_expansion: noise must be (k, n-1, D) with k=6, n=3, D=4, got (6, 3, 4)",
    ),
    ("soft_triple_fwd", {"gamma": -0.25}, "soft_triple_loss: gamma must be in (0, inf), got -0.25"),
    ("soft_triple_fwd", {"gamma": 0.0}, "soft_triple_loss: gamma must be in (0, inf), got 0.0"),
    (
        "soft_triple_fwd",
        {"centers_per_class": 4},
        "soft_triple_loss: centers must be (C*centers_per_class, D) with centers_per_class=4, D=4, got (6, 4)",
    ),
    (
        "distance_weighted_fwd",
        {"cutoff": 1e-5, "nonzero_loss_cutoff": 1e-5},
        "distance_weighted: cutoff must be in (0, nonzero_loss_cutoff) with nonzero_loss_cutoff=1e-05, got 1e-05",
    ),
    (
        "distance_weighted_fwd",
        {"nonzero_loss_cutoff": 1e22},
        "distance_weighted: nonzero_loss_cutoff must be in (0, 2], got 1e+22",
    ),
    ("coding_rate_bwd", {"grad_rate": torch.ones(1)}, "coding_rate_bwd: grad_rate must be (), got (1,)"),
    ("cholesky_fwd", {"A": torch.ones(2, 3, 4)}, "cholesky_logdet: A must be (B, n, n), got (2, 3, 4)"),
]
# Of what tensors hold, where somebody waits for it.
NUMBERS = [
    ("soft_triple_fwd", {"labels": Y}, "soft_triple_loss: labels must be in [0, C) with C=3, got 5"),
    ("soft_triple_fwd", {"labels": Y - 1}, "soft_triple_loss: labels must be in [0, C) with C=3, got -1"),
    ("soft_triple_fwd", {"labels": Y + 3}, "soft_triple_loss: labels must be in [0, C) with C=3, got 8"),
    (
        "nearest_positive_bwd",
        {"index": Y},
        "nearest_positive_bwd: index must be in [-1, N) with N=5, got 5",
    ),
    (
        "distance_weighted_fwd",
        {"uniforms": torch.ones(6, 2).double()},
        "distance_weighted: uniforms must be in [0, 1), got 1.0",
    ),
]


@pytest.mark.parametrize("op, change, sentence", SENTENCES, ids=[s[2].partition(" must")[0] for s in SENTENCES])
def test_sentences(kernel, op, change, sentence):
    known = calls.arguments(op, kernel)
    change = {k: v.to(kernel.device) if isinstance(v, torch.Tensor) and not v.is_meta else v for k, v in change.items()}
    sentence = sentence.replace("on cpu", f"on {next(iter(known.values())).device}")
    assert error(getattr(kernel.operators, op), **known | change) == (ValueError, sentence)


def test_more_rows_than_kernels_count(kernel):
    x = X[:1].to(kernel.device).expand(2**31, 4)
    known = calls.arguments("pairwise_fwd", kernel) | {"x": x}
    sentence = "pairwise: x must be of at most 2^31 - 1 rows, got (2147483648, 4)"
    assert error(kernel.operators.pairwise_fwd, **known) == (ValueError, sentence)


@pytest.mark.parametrize("op, change, sentence", NUMBERS, ids=[s[2].partition(" must")[0] for s in NUMBERS])
def test_sentences_about_numbers(kernel, op, change, sentence):
    if kernel.asynchronous:
        pytest.skip("nobody waits for these kernels: what comes of it is NaN")
    known = calls.arguments(op, kernel)
    assert error(getattr(kernel.operators, op), **known | change) == (ValueError, sentence)
