"""NT-Xent: a softmax for each positive pair, against the negatives of its query."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .._options import above_zero, choice
from ..ops.pair_loss import Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings, mean, softmax_cost


@dataclasses.dataclass(eq=False, repr=False)
class NTXent(PairSettings):
    """The options of `ntxent_loss`, and the loss."""

    op = "ntxent_loss"
    distinct = False

    temperature: float = above_zero(0.07)
    positive: str = choice("all", "all", "easy")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        side = Side("exp", 1 / self.temperature)
        if self.positive == "easy":
            stats = pairs.statistics("similarity", side, side, neg_totals=True)
            terms, anchors = softmax_cost(stats)
            return mean(terms, anchors.sum()), stats
        negatives = pairs.statistics("similarity", None, side, neg_totals=True)
        # −log e^{s_p/τ}/(e^{s_p/τ} + e^L) = log(1 + e^{L − s_p/τ}), L the log-sum-exp of the negatives.
        bound = self.temperature * negatives.neg
        bounds = torch.stack([bound, torch.zeros_like(bound)])
        positives = pairs.statistics("similarity", Side("softplus", -1 / self.temperature), None, bounds)
        count = positives.pos_members
        stats = negatives._replace(pos_slope=count, pos_sum=positives.pos_sum)
        return mean(positives.pos, count.sum()), stats


def ntxent_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.07,
    positive: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """NT-Xent (InfoNCE) loss −log e^{s_p/τ}/(e^{s_p/τ} + Σ_n e^{s_n/τ}) of each positive pair.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`; with normalize=False similarities are dot products.
        temperature: τ.
        positive: "all", or "easy" for one pair a query, with its nearest positive (in Euclidean distance).

    Returns:
        () mean over the positive pairs, float32 (float64 for float64); a pair of a query without negatives counts 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Sohn, NeurIPS 2016, eq. 6; Chen et al., "A simple framework for contrastive learning of visual representations",
        ICML 2020, eq. 1; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> F.ntxent_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 2)
    """
    settings = NTXent(temperature, positive, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite)
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class NTXentLoss(NTXent, PairLoss):
    """`ntxent_loss` as a module.

    Where pytorch-metric-learning takes a distance, this is its loss of CosineSimilarity, or without `normalize` of
    DotProductSimilarity; `NCALoss` is that of squared distances. A pair counts as often as it is listed. Small losses
    keep their relative accuracy here, while that library takes the logarithm of a rounded quotient.
    Where neither kind has more than one pair, it returns 0; here such a batch counts.

    Args:
        temperature, positive: as in `ntxent_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs), mean_pos_similarity and mean_neg_similarity.

    Example:
        >>> loss = losses.NTXentLoss(temperature=0.1)
        >>> loss(embeddings, labels).backward()
    """
