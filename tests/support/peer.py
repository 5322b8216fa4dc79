"""pytorch-metric-learning beside ours: value and gradients of every tensor that learns, in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dmlkernels.testing import Pairs

TOLERANCE = 1e-10  # relative to the largest entry of what is compared


def run(
    loss: Callable[..., Tensor], pairs: Pairs, indices: Any = None, parameters: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Value, and gradients of embeddings, of ref_emb if there is one and of the parameters (zeros where there is none).

    What there is not is not passed, and the rest by keyword: `loss` may be a module of either library or a function
    bound to its options.
    """
    given = {"ref_emb": pairs.ref_emb, "ref_labels": pairs.ref_labels}
    given = {name: None if value is None else value.detach().clone() for name, value in given.items()}
    x = pairs.embeddings.detach().clone().requires_grad_()
    leaves = [x, *parameters]
    if given["ref_emb"] is not None:
        leaves.insert(1, given["ref_emb"].requires_grad_())
    given["indices_tuple"] = indices
    value = loss(x, pairs.labels, **{name: item for name, item in given.items() if item is not None})
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads)]


def mined(miner: Callable[..., Any], pairs: Pairs) -> Any:
    """What a miner of either library lists."""
    with torch.no_grad():
        if pairs.ref_emb is None:
            return miner(pairs.embeddings, pairs.labels)
        return miner(pairs.embeddings, pairs.labels, ref_emb=pairs.ref_emb, ref_labels=pairs.ref_labels)


def assert_same(
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    pairs: Pairs,
    *,
    miner: Callable[..., Any] | None = None,
    ours_listed: bool = False,
    parameters: Sequence[tuple[Tensor, Tensor]] = (),
    zero: bool = False,
) -> None:
    """Assert that both give the same value and gradients, to 1e-10 of the largest entry.

    Args:
        ours, theirs: called as loss(embeddings, labels, indices_tuple=, ref_emb=, ref_labels=) with what there is.
        pairs: float64, as of `make_pairs`.
        miner: of pytorch-metric-learning; what it lists goes to theirs, and with `ours_listed` to ours too.
        parameters: (ours, theirs), tensors that learn too; they must hold the same numbers.
        zero: the loss is 0 and so is its gradient. Otherwise every gradient must be non-zero, so that the comparison
            compares something.
    """
    assert pairs.embeddings.dtype == torch.float64
    for own, other in parameters:
        assert torch.equal(own, other)
    indices = None if miner is None else mined(miner, pairs)
    value, grads = run(ours, pairs, indices if ours_listed else None, [own for own, _ in parameters])
    expected, expected_grads = run(theirs, pairs, indices, [other for _, other in parameters])
    for name, actual, wanted in zip(
        ("value", *(f"gradient {k}" for k in range(len(grads)))),
        (value, *grads),
        (expected, *expected_grads),
        strict=True,
    ):
        assert actual.shape == wanted.shape, f"{name}: shape {tuple(actual.shape)}, theirs {tuple(wanted.shape)}"
        size = float(wanted.abs().max())
        assert (size == 0) == zero, f"{name}: the largest entry of theirs is {size}"
        error = float((actual - wanted).abs().max())
        assert error <= TOLERANCE * size, f"{name}: off by {error:.3e} of {size:.3e}"
