"""Supervised contrastive loss."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .._options import above_zero, choice
from ..ops.pair_loss import Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings, nonzero_mean, softmax_cost, some


@dataclasses.dataclass(eq=False, repr=False)
class SupCon(PairSettings):
    """The options of `supcon_loss`, and the loss."""

    op = "supcon_loss"

    temperature: float = above_zero(0.1)
    positive: str = choice("all", "all", "easy")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        side = Side("exp", 1 / self.temperature)
        stats = pairs.statistics("similarity", side, side, neg_totals=True)
        # log(e^{L_P} + e^{L_N}) − mean s_p/τ as two terms that are never negative. The second, L_P − mean s_p/τ, is at
        # least log K, and 0 for one positive: nothing cancels in a converged batch.
        terms, anchors = softmax_cost(stats)
        several = anchors & ~(stats.pos_slope == 1)
        mean_score = stats.pos_sum / (self.temperature * stats.pos_slope.clamp_min(1))
        spread = torch.where(several, stats.pos, 0) - torch.where(several, mean_score, 0)
        both = anchors.any() & some(stats.neg).any()
        return nonzero_mean(torch.where(both, terms + spread, 0)), stats


def supcon_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    positive: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Supervised contrastive loss: mean over the positives of −log e^{s_p/τ}/Σ_a e^{s_a/τ}, a over all other rows.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`; with normalize=False similarities are dot products.
        temperature: τ.
        positive: "all", or "easy": the nearest positive (in Euclidean distance) is the only one, in the sum too.

    Returns:
        () mean over the queries whose loss is not 0, float32 (float64 for float64); 0 if the batch has no positive or
        no negative pair. Queries without a positive have loss 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Khosla et al., "Supervised contrastive learning", NeurIPS 2020, eq. 2; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> F.supcon_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 4)
    """
    settings = SupCon(temperature, positive, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite)
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class SupConLoss(SupCon, PairLoss):
    """`supcon_loss` as a module.

    Where pytorch-metric-learning takes a distance, this is its loss of CosineSimilarity, or without `normalize` of
    DotProductSimilarity.

    A query with one positive has log(1 + e^{L_N − s_p/τ}) here, never rounded to a negative number or, too early, to 0;
    so the mean over non-zero queries of a converged batch may count more of them than pytorch-metric-learning's.
    Where neither kind has more than one pair, that library returns 0; here such a batch counts.

    Args:
        temperature, positive: as in `supcon_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs), mean_pos_similarity and mean_neg_similarity.

    Example:
        >>> loss = losses.SupConLoss(temperature=0.1)
        >>> loss(embeddings, labels).backward()
    """
