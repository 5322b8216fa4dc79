"""Every loss as a module: copies, moves, graphs, fake tensors, rows that are not finite."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from support.every_loss import PAIRS, PROXIES, ROWS, make, samples
from torch._subclasses.fake_tensor import FakeTensorMode

from dmlkernels import losses
from dmlkernels._options import options
from dmlkernels.testing import make_pairs

SAMPLES = [pytest.param(name, chosen, id="-".join([name, *chosen])) for name, chosen in samples()]
D = 6


def batch(rows=24, dtype=torch.float32, device="cpu", seed=0):
    pairs = make_pairs("random", rows, d=D, classes=6, dtype=dtype, seed=seed, device=device)
    return pairs.embeddings, pairs.labels


@pytest.mark.parametrize("name, chosen", SAMPLES)
def test_copies_and_pickles(name, chosen):
    loss = make(name, width=D, **chosen)
    x, y = batch()
    torch.manual_seed(0)
    value = loss(x, y)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.manual_seed(0)
        assert torch.equal(other(x, y), value)
        assert repr(other) == repr(loss)
        assert list(other.state_dict()) == list(loss.state_dict())


@pytest.mark.parametrize("name", ROWS)
def test_repr_is_the_constructor(name):
    """Every option, in the order of the constructor."""
    for sample in ({}, *ROWS[name].samples):
        shown = repr(make(name, width=D, **sample))
        named = [part.split("=")[0] for part in shown[len(name) + 1 : -1].split(", ")]
        assert [option for option in named if option != "beta" or name != "MarginLoss"] == list(
            options(ROWS[name].type)
        )
        for option, value in sample.items():
            assert f"{option}={value!r}" in shown or (option, name) == ("beta", "MarginLoss")


@pytest.mark.parametrize("name", ROWS)
def test_moves_of_dtype(backend, device, name):
    """Parameters and rows of every pair of dtypes meet; the value is that of their common dtype, in float32 or more."""
    loss = make(name, width=D).to(device)
    for move, dtype in ((torch.nn.Module.half, torch.float16), (torch.nn.Module.double, torch.float64)):
        move(loss)
        for rows in (torch.float32, dtype):
            x, y = batch(dtype=rows, device=device)
            value = loss(x.requires_grad_(), y)
            value.backward()
            assert x.grad.dtype == rows
            assert all(p.grad is not None and p.grad.dtype == dtype for p in loss.parameters())
            both = [rows, *(p.dtype for p in loss.parameters())]
            assert value.dtype == (torch.float64 if torch.float64 in both else torch.float32)


@pytest.mark.parametrize("name", PROXIES)
def test_parameters_are_drawn_anew(name):
    loss = make(name, width=D)
    first = [p.detach().clone() for p in loss.parameters()]
    torch.manual_seed(0)
    loss.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, loss.parameters(), strict=True))
    loss.reset_parameters()
    assert not any(torch.equal(a, b) for a, b in zip(first, loss.parameters(), strict=True))
    with torch.device("meta"):
        empty = make(name, width=D)
    empty.to_empty(device="cpu")
    torch.manual_seed(0)
    empty.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first, empty.parameters(), strict=True))


DRAWN = {"negative": "distance_weighted", "positive": "easy"}
COMPILED = [
    *((name, {}) for name in ROWS),
    ("MarginLoss", DRAWN),
    ("MarginLoss", {"learn_beta": True, "num_classes": 6}),
    ("RankedListLoss", {"positive": "easy", "eps_mode": "pml"}),
    ("RankedListLoss", {"reduction": "share"}),
    ("TripletMarginLoss", {"positive": "easy", "negative": "semihard", "swap": True}),
    ("TripletMarginLoss", {"positive": "easy", "negative": "all"}),
    ("MultiSimilarityLoss", {"epsilon": 0.1}),
]


def compiled_twice(loss, change, device):
    """At two sizes and in two states, forward and backward, the graph does what the module does."""
    torch._dynamo.reset()
    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in range(2):
        for rows in (24, 36):
            x, y = batch(rows, device=device, seed=step)
            results = []
            for function in (loss, graph):
                leaf = x.clone().requires_grad_()
                torch.manual_seed(1)
                value = function(leaf, y)
                value.sum().backward()
                results.append((value.detach(), leaf.grad))
            for one, other in zip(*results, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        change(loss)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name, chosen",
    [pytest.param(*case, marks=pytest.mark.full if case[1] else ()) for case in COMPILED],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
def test_compile_at_two_sizes_and_in_two_states(kernel, device, name, chosen):
    loss = make(name, width=D, **chosen).to(device)
    option = next(
        o for o in ("margin", "neg_margin", "temperature", "softmax_scale", "base", "m", "gain") if hasattr(loss, o)
    )
    compiled_twice(loss, lambda loss: setattr(loss, option, getattr(loss, option) + 0.1), device)


@pytest.mark.heavy
@pytest.mark.parametrize("name", [pytest.param("RankedListLoss", marks=pytest.mark.full), "ProxyAnchorLoss"])
def test_compile_expansion_and_its_schedule(kernel, device, name):
    loss = losses.SphericalExpansionLoss(make(name, width=D), n=2).to(device)
    torch._dynamo.reset()
    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for epoch in (3, 7):
        loss.set_epoch(epoch, 10)
        for rows in (24, 36):
            x, y = batch(rows, device=device)
            value = graph(x.requires_grad_(), y)
            value.backward()
            assert bool(value.isfinite())
            assert int(loss.last_stats["expanded"]) == round(rows * loss.fraction)


@pytest.mark.parametrize("name, chosen", COMPILED, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_fake_tensors(kernel, device, name, chosen):
    """Nothing reads a value: shapes and dtypes come out, of embeddings and parameters alike."""
    with FakeTensorMode(), torch.device(device):
        loss = make(name, width=D, **chosen)
        x = torch.randn(24, D, requires_grad=True)
        value = loss(x, torch.arange(24) % 6)
        value.sum().backward()
        assert value.shape == ()
        assert x.grad.shape == x.shape
        assert all(p.grad is not None and p.grad.shape == p.shape for p in loss.parameters())


@pytest.mark.parametrize("name, chosen", COMPILED, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_meta_tensors(name, chosen):
    """Shapes alone, for who builds a model before it has memory."""
    with torch.device("meta"):
        loss = make(name, width=D, **chosen)
        x = torch.randn(24, D, requires_grad=True)
        value = loss(x, torch.arange(24) % 6)
    value.backward()
    assert value.shape == ()
    assert value.device.type == x.grad.device.type == "meta"


def test_sparse_rows_are_refused():
    with pytest.raises(ValueError, match="RankedListLoss: embeddings must be a dense tensor, got torch"):
        losses.RankedListLoss()(torch.eye(6).to_sparse(), torch.arange(6) // 2)


LISTS = (torch.tensor([0, 2, 6]), torch.tensor([1, 3, 7]), torch.tensor([4, 5, 0]))
NAN_PATHS = [
    pytest.param(name, chosen, listed, id="-".join([name, *chosen, listed]))
    for name, chosen in samples()
    for listed in ("batch", "triplets", "pairs")
    if (ROWS[name].pairs or listed == "batch")
    and (listed == "batch" or chosen.get("negative") not in ("hard", "semihard") or name != "NCALoss")
]


@pytest.mark.parametrize("name, chosen, listed", NAN_PATHS)
def test_a_row_that_is_not_finite_reaches_the_loss(backend, device, name, chosen, listed):
    """As an anchor, a positive and a negative, in the batch and in lists."""
    if "ignore_index" in chosen:
        chosen = {**chosen, "ignore_index": None}
    lists = {"batch": None, "triplets": LISTS, "pairs": (LISTS[0], LISTS[1], LISTS[0], LISTS[2])}[listed]
    lists = None if lists is None else tuple(t.to(device) for t in lists)
    for row in (0, 1, 4):
        for bad in (torch.nan, torch.inf):
            x, y = torch.randn(8, D, generator=torch.Generator().manual_seed(0)), torch.arange(8) // 2
            x[row, 2] = bad
            value = make(name, width=D, **chosen).to(device)(
                x.to(device), y.to(device), *(() if lists is None else (lists,))
            )
            assert bool(value.isnan().any()), f"row {row} with {bad}: {value}"


@pytest.mark.parametrize("name", PAIRS)
def test_a_broken_row_that_is_not_listed_does_not(backend, device, name):
    x, y = torch.randn(8, D, generator=torch.Generator().manual_seed(0), device="cpu"), torch.arange(8) // 2
    x[7] = torch.nan
    x = x.to(device).requires_grad_()
    lists = tuple(torch.tensor(t, device=device) for t in ([0, 2], [1, 3], [4, 5]))
    value = make(name)(x, y.to(device), lists)
    value.backward()
    assert bool(value.isfinite())
    assert bool(x.grad.isfinite().all())
    assert not bool(x.grad[7].any())


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "TripletMarginLoss"])
def test_easy_positives_that_are_listed_keep_the_first_of_equals(backend, device, name):
    """Rows 1 and 2 are equally near to row 0: the lower is its positive, as in the batch. Triplets all count."""
    x = torch.tensor([[1.0, 0], [0, 1], [0, -1], [-1, 0], [-0.6, 0.8]], dtype=torch.float64, device=device)
    y = torch.tensor([0, 0, 0, 1, 1], device=device)
    a1, p, a2, n = (torch.tensor(t, device=device) for t in ([0, 0], [2, 1], [0, 0], [3, 4]))
    x.requires_grad_()
    make(name, positive="easy")(x, y, (a1, p, a2, n)).backward()
    assert bool(x.grad[1].any())
    assert not bool(x.grad[2].any())


def test_mean_beta_is_where_the_loss_is():
    loss = losses.MarginLoss()
    x, y = batch()
    torch.set_default_device("meta")
    try:
        loss(x, y)
    finally:
        torch.set_default_device(None)
    assert loss.last_stats["mean_beta"].device == x.device


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "RankedListLoss"])
def test_compile_under_a_default_device(name):
    loss = losses.SphericalExpansionLoss(make(name, width=D), n=2)
    x, y = batch(24)
    torch.compiler.reset()
    with torch.device("cpu"):
        assert bool(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y).isfinite())
