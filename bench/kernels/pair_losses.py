"""The pair losses beside pytorch-metric-learning's of the same class, each with its defaults, which are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn

from dmlkernels import losses
from dmlkernels._losses import TABLE

ROWS = 4096


class PairLoss(NamedTuple):
    title: str
    module: str  # of dmlkernels.losses and of pytorch_metric_learning.losses
    rows: int = ROWS
    peer: bool = True  # whether the peer's memory allows so many rows


def _losses() -> Iterator[tuple[str, PairLoss]]:
    for row in TABLE:
        if not row.pairs or row.name == "ranked_list":  # which has cases of its own (bench/kernels/run.py)
            continue
        if row.name == "triplet":
            yield "triplet_all", PairLoss("TripletMarginLoss, all × all", row.module, rows=512)
            yield "triplet_all_large", PairLoss("TripletMarginLoss, all × all", row.module, peer=False)
        else:
            # The peer's NT-Xent compares every positive pair with every negative pair: 29,000 × 17 million.
            yield row.name, PairLoss(row.module, row.module, peer=row.name != "ntxent")


LOSSES = dict(_losses())


@cache
def _ours(name: str) -> nn.Module:
    return getattr(losses, LOSSES[name].module)()


def call(name: str) -> Callable[..., tuple[Tensor]]:
    """Our loss of a batch."""
    return lambda b: (_ours(name)(b.embeddings, b.labels, ref_emb=b.ref_emb, ref_labels=b.ref_labels),)


def peer(name: str) -> Callable[..., tuple[Tensor]]:
    """pytorch-metric-learning's."""
    from pytorch_metric_learning import losses as theirs

    loss = getattr(theirs, LOSSES[name].module)()
    return lambda b: (loss(b.embeddings, b.labels),)
