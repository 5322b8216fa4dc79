"""Generalised lifted structure loss."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .._options import choice, number
from ..ops.pair_loss import Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings, mean, some


@dataclasses.dataclass(eq=False, repr=False)
class Lifted(PairSettings):
    """The options of `lifted_loss`, and the loss."""

    op = "lifted_loss"
    value = "distance"

    neg_margin: float = number(1.0)
    pos_margin: float = number(0.0)
    positive: str = choice("all", "all", "easy")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        pos, neg = Side("exp", 1.0, self.pos_margin), Side("exp", -1.0, self.neg_margin)
        stats = pairs.statistics("distance", pos, neg, neg_totals=True)
        anchors = some(stats.pos)
        rows = torch.where(anchors, stats.pos, 0) + torch.where(some(stats.neg), stats.neg, 0)
        if self.positive == "easy":
            return mean(torch.where(anchors, rows.relu(), 0), anchors.sum()), stats
        return mean(rows.relu(), pairs.queries()), stats


def lifted_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    neg_margin: float = 1.0,
    pos_margin: float = 0.0,
    positive: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Generalised lifted structure loss [log Σ_p e^{d_p − pos_margin} + log Σ_n e^{neg_margin − d_n}]₊ of each query.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        neg_margin: distance that negatives should have.
        pos_margin: distance that positives may have.
        positive: "all", or "easy" for the nearest positive alone.

    Returns:
        () mean over the queries, float32 (float64 for float64). The logarithm of a side that a query lacks counts 0;
        with easy positives a query without a positive is left out.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Hermans et al., "In defense of the triplet loss for person re-identification", 2017, section 2; easy positives:
        Levi et al., ICCV 2021.

    Example:
        >>> F.lifted_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 4)
    """
    settings = Lifted(
        neg_margin, pos_margin, positive, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite
    )
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class GeneralizedLiftedStructureLoss(Lifted, PairLoss):
    """`lifted_loss` as a module.

    Where neither kind has more than one pair, pytorch-metric-learning returns 0; here such a batch counts.

    Args:
        neg_margin, pos_margin, positive: as in `lifted_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs), mean_pos_distance and mean_neg_distance.

    Example:
        >>> loss = losses.GeneralizedLiftedStructureLoss()
        >>> loss(embeddings, labels).backward()
    """
