"""The pair losses beside pytorch-metric-learning's of the same name, each with its defaults, which are the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from torch import Tensor, nn

from dmlkernels import losses


class PairLoss(NamedTuple):
    title: str
    module: str  # of dmlkernels.losses and of pytorch_metric_learning.losses
    rows: int = 4096
    peer: bool = True  # whether the peer's memory allows so many rows


LOSSES = {
    "contrastive": PairLoss("contrastive", "ContrastiveLoss"),
    "margin": PairLoss("margin", "MarginLoss"),
    "triplet_all": PairLoss("triplet, all × all", "TripletMarginLoss", rows=512),
    "triplet_all_large": PairLoss("triplet, all × all", "TripletMarginLoss", peer=False),
    "multi_similarity": PairLoss("multi-similarity", "MultiSimilarityLoss"),
    "supcon": PairLoss("SupCon", "SupConLoss"),
    "circle": PairLoss("circle", "CircleLoss"),
    "lifted": PairLoss("generalised lifted", "GeneralizedLiftedStructureLoss"),
    "nca": PairLoss("NCA", "NCALoss"),
    # The peer compares every positive pair with every negative pair: 29,000 × 17 million.
    "ntxent": PairLoss("NT-Xent", "NTXentLoss", peer=False),
}


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
