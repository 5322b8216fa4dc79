"""The rule itself: right results pass, and each way of being wrong that we know of does not."""

from __future__ import annotations

import pytest
import torch

import dmlkernels
from dmlkernels import functional as F
from dmlkernels.testing import (
    INTEGER_DTYPES,
    KINDS,
    LABEL_KINDS,
    assert_matches,
    make_labels,
    make_pairs,
    near_boundary,
    shaken,
)


class Changed(torch.autograd.Function):
    """Identity whose gradient goes through a change."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad.clone()), None


def zero_row(row):
    def change(grad):
        grad[row] = 0
        return grad

    return change


def judge(value=lambda v: v, grad=lambda g: g, which=0, dtype=torch.float32, n=None, **rule):
    """assert_matches of the reference with its value and one of its gradients changed."""
    pairs = make_pairs("random", 140, n, 8, dtype=dtype, seed=1, avoid=(0.8, 1.2))
    labels = pairs.labels, pairs.ref_labels

    def right(x, g=None):
        return F.ranked_list_loss(x, labels[0], g, labels[1], reduction="none")

    def function(*rows):
        rows = [Changed.apply(r, grad) if k == which else r for k, r in enumerate(rows)]
        return value(right(*rows))

    with dmlkernels.use_backend("reference"):
        assert_matches(
            function, [t for t in (pairs.embeddings, pairs.ref_emb) if t is not None], reference=right, **rule
        )


def test_right_results_pass(dtype):
    judge(dtype=dtype)
    judge(dtype=dtype, n=150)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("row", [0, 127, 128, 139])
def test_one_lost_gradient_row_fails(row, which, dtype):
    with pytest.raises(AssertionError, match=rf"gradient {which}: .*worst at \({row},\)"):
        judge(grad=zero_row(row), which=which, n=150, dtype=dtype)


@pytest.mark.parametrize(
    "change",
    [
        lambda g: -g,
        lambda g: g * 1.001,
        lambda g: g.roll(1, 0),
        lambda g: torch.where(torch.arange(len(g))[:, None] == 5, torch.nan, g),
        lambda g: torch.zeros_like(g),
        lambda g: g + 1e-4,
    ],
    ids=["sign", "scale", "shift", "nan", "zero", "offset"],
)
def test_wrong_gradients_fail(change):
    with pytest.raises(AssertionError, match=r"gradient 0: .*outside the tolerance"):
        judge(grad=change)


@pytest.mark.parametrize(
    "change",
    [lambda v: v + 2e-5, lambda v: v * 1.0001, lambda v: torch.where(v == v.max(), torch.nan, v), lambda v: v.flip(0)],
    ids=["offset", "scale", "nan", "order"],
)
def test_wrong_values_fail(change):
    with pytest.raises(AssertionError, match=r"value: .*outside the tolerance"):
        judge(value=change)


def test_a_small_bias_of_every_row_fails_in_the_mean():
    """Inside the tolerance of a row, outside that of the mean."""
    with pytest.raises(AssertionError, match="mean: "):
        judge(value=lambda v: v * (1 + 9e-6) + 1.5e-6)


def test_rows_too_quiet_to_judge_are_refused():
    pairs = make_pairs("random", 20, d=8)
    twins = torch.cat([pairs.embeddings, pairs.embeddings * (1 + 4e-6 * torch.randn(20, 8))])
    labels = torch.arange(40)

    def function(x):
        return F.ranked_list_loss(x, labels, alpha=0.1, margin=0.05, reduction="none")

    with pytest.raises(AssertionError, match="too quiet to be judged"):
        assert_matches(function, [twins])
    assert_matches(function, [twins], max_quiet=1.0)


def test_too_many_pairs_on_a_boundary_are_refused():
    """Orthonormal rows are all √2 apart: an α of √2 puts every pair on it, and nothing could be judged."""
    x, labels = torch.eye(40), torch.arange(40)

    def at(alpha):
        return lambda e: F.ranked_list_loss(e, labels, alpha=alpha, margin=0.1, reduction="none")

    root = 2.0**0.5
    with pytest.raises(AssertionError, match="rows sit on a boundary"):
        assert_matches(at(root), [x], max_quiet=1.0, shifted=(at(root - 1e-5), at(root + 1e-5)))


@pytest.mark.parametrize("kind", KINDS)
def test_factories_repeat_and_are_what_they_say(kind, dtype):
    a, b = (make_pairs(kind, 64, 48, 8, dtype=dtype, seed=3) for _ in range(2))
    other = make_pairs(kind, 64, 48, 8, dtype=dtype, seed=4)
    for s, t in zip(a, b, strict=True):
        assert torch.equal(s, t)
    assert not torch.equal(a.labels, other.labels)
    assert a.embeddings.dtype == a.ref_emb.dtype == dtype
    assert (a.embeddings.shape, a.ref_emb.shape) == ((64, 8), (48, 8))
    assert bool(a.embeddings.isfinite().all())
    d = torch.cdist(*(2 * [torch.nn.functional.normalize(a.embeddings.double(), dim=1)]))
    same = a.labels[:, None] == a.labels
    off = ~torch.eye(64, dtype=torch.bool)
    facts = {
        "random": bool((d[off] > 0.01).all()),
        "clustered": float(d[same].max()) < 0.3 < float(d[~same].max()),
        "collapsed": float((d < 0.02).double().mean()) > 0.7,
        "duplicates": bool((d[off & same] == 0).any() and (d[~same] == 0).any()),
        "orthogonal": set(a.embeddings.double().unique().tolist()) == {0.0, 1.0},
        "zero_rows": int((a.embeddings == 0).all(1).sum()) == 13,
        "large_norms": float(a.embeddings.double().norm(dim=1).max() / a.embeddings.double().norm(dim=1).min()) > 100,
    }
    assert facts[kind]


@pytest.mark.parametrize("kind", LABEL_KINDS)
def test_labels_are_what_they_say(kind):
    labels = make_labels(kind, 100, 7, generator=torch.Generator().manual_seed(1))
    sizes = labels.unique(return_counts=True)[1]
    ordered = bool((labels[1:] >= labels[:-1]).all())
    assert ordered == (kind in ("sorted", "one_class"))
    expected = {"one_class": 1, "distinct": 100}.get(kind, 7)
    assert len(sizes) == expected
    if kind == "ragged":
        assert int(sizes.max()) == 50
        assert int(sizes.min()) <= 2
    if kind == "negative":
        assert int(labels.min()) == -3
    if kind == "wide":
        assert len(labels.to(torch.int32).unique()) == 1


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_label_dtypes(label_dtype):
    assert make_pairs("random", 8, 6, 3, 2, label_dtype=label_dtype).ref_labels.dtype == label_dtype


def test_avoided_boundaries_are_avoided():
    free = [bool(near_boundary(*make_pairs("random", 300, d=4, seed=s)[::2], (1.2,)).any()) for s in range(8)]
    assert any(free)
    for s in range(8):
        pairs = make_pairs("random", 300, d=4, seed=s, avoid=(1.2,))
        assert not bool(near_boundary(pairs.embeddings, None, (1.2,)).any())
    with pytest.raises(ValueError, match="use fewer rows"):
        make_pairs("orthogonal", 20, d=8, avoid=(2.0**0.5,))


def test_shaking_keeps_copies_together():
    x = torch.randn(10, 6)
    moved, again = shaken([torch.cat([x, x]), x[3:5]], seed=0)
    assert torch.equal(moved[:10], moved[10:])
    assert torch.equal(moved[3:5], again)
    step = (moved[:10] - x.double()).norm(dim=1) / x.double().norm(dim=1)
    torch.testing.assert_close(step, torch.full_like(step, torch.finfo(torch.float32).eps), rtol=1e-6, atol=0)
