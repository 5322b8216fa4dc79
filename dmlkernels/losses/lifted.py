"""Generalised lifted structure loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.pair_loss import Options, Side, Statistics
from ._rows import RowLoss, Source, mean, some


class Settings(NamedTuple):
    """The options of `lifted_loss`, checked."""

    neg_margin: float
    pos_margin: float
    positive: str

    @staticmethod
    def checked(name: str, neg_margin: float, pos_margin: float, positive: str) -> Settings:
        _checks.one_of(name, "positive", positive, ("all", "easy"))
        neg_margin, pos_margin = (
            _checks.number(name, argument, value)
            for argument, value in (("neg_margin", neg_margin), ("pos_margin", pos_margin))
        )
        return Settings(neg_margin, pos_margin, positive)

    def loss(self, source: Source) -> tuple[Tensor, Statistics]:
        options = Options("distance", Side("exp", 1.0, self.pos_margin), Side("exp", -1.0, self.neg_margin))
        stats = source.statistics(options)
        anchors = some(stats.pos)
        rows = torch.where(anchors, stats.pos, 0) + torch.where(some(stats.neg), stats.neg, 0)
        if self.positive == "easy":
            return mean(torch.where(anchors, rows.clamp_min(0), 0), anchors.sum()), stats
        return mean(rows.clamp_min(0), source.rows()), stats


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
    name = "lifted_loss"
    settings = Settings.checked(name, neg_margin, pos_margin, positive)
    inputs = _checks.pair_inputs(name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return settings.loss(Source(name, inputs, positive, check_finite))[0]


class GeneralizedLiftedStructureLoss(RowLoss):
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

    def __init__(self, neg_margin: float = 1.0, pos_margin: float = 0.0, positive: str = "all", **options: Any) -> None:
        settings = Settings.checked("GeneralizedLiftedStructureLoss", neg_margin, pos_margin, positive)
        super().__init__(settings, "distance", **options)
