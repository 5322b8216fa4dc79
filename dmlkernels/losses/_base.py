"""What every pair loss shares: the constructor's options of the pair functions, and `last_stats`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks

NO_LABEL = -(2**63)  # a label, or an id, that no row has


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """total / count, 0 where the count is 0."""
    return total / count.clamp_min(1)


def refuse_pairs(loss: str, **arguments: object) -> None:
    """A loss of the batch as a whole has no pairs to list, no gallery and nothing to exclude."""
    for name, value in arguments.items():
        if value is not None:
            _checks.fail(loss, name, "None, since this loss is not one of pairs", type(value).__name__)


def call_loss(loss: nn.Module, embeddings: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
    """Call any loss, pytorch-metric-learning's included, with those of the arguments that were given."""
    return loss(embeddings, labels, **{name: value for name, value in arguments.items() if value is not None})


@contextlib.contextmanager
def ignoring(loss: Any) -> Iterator[int | None]:
    """The label that the loss ignores inside the block: its own, or one that no class has; None if it cannot ignore."""
    own = getattr(loss, "ignore_index", None)
    if own is not None or not hasattr(loss, "ignore_index"):
        yield own
        return
    loss.ignore_index = NO_LABEL
    try:
        yield NO_LABEL
    finally:
        loss.ignore_index = None


class PairLoss(nn.Module):
    """A loss of (embeddings, labels), optionally against a gallery (ref_emb, ref_labels).

    Args:
        normalize: L2-normalise the rows.
        ignore_index: rows of this label take no part.
        check_finite: raise for NaN or Inf; by default they make the loss NaN.

    Attributes:
        last_stats: what people watch in training, from the last forward: a dict of detached () tensors, which costs no
            synchronisation until it is read.
    """

    def __init__(self, normalize: bool = True, ignore_index: int | None = None, check_finite: bool = False) -> None:
        super().__init__()
        self.normalize, self.ignore_index, self.check_finite = normalize, ignore_index, check_finite
        self.last_stats: dict[str, Tensor] = {}

    def pair_inputs(
        self,
        name: str,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        ids: Tensor | None,
        ref_ids: Tensor | None,
    ) -> _checks.PairInputs:
        """The checked arguments of one forward."""
        return _checks.pair_inputs(
            name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, self.ignore_index, self.normalize
        )

    @torch.no_grad()
    def set_stats(
        self, pos_count: Tensor, neg_count: Tensor, pos_sum: Tensor, neg_sum: Tensor, *, value: str = "distance"
    ) -> None:
        """Keep counts and mean values, from counts and summed values of the pairs that took part."""
        self.last_stats = {
            "active_positives": pos_count,
            "active_negatives": neg_count,
            f"mean_pos_{value}": mean_of(pos_sum, pos_count),
            f"mean_neg_{value}": mean_of(neg_sum, neg_count),
        }
