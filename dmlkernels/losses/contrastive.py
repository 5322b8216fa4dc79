"""Contrastive loss: hinges of the distance, or of the similarity, of every pair."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .._options import choice, number
from ..ops.pair_loss import Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings, mean


@dataclasses.dataclass(eq=False, repr=False)
class Contrastive(PairSettings):
    """The options of `contrastive_loss`, and the loss."""

    op = "contrastive_loss"
    distinct = False

    pos_margin: float = number(0.0)
    neg_margin: float = number(1.0)
    metric: str = choice("euclidean", "euclidean", "cosine")
    positive: str = choice("all", "all", "easy")
    reduction: str = choice("nonzero_mean", "nonzero_mean", "mean", "sum", "none")

    @property
    def value(self) -> str:  # type: ignore[override]
        return "distance" if self.metric == "euclidean" else "similarity"

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        # [d − pos_margin]₊ and [neg_margin − d]₊; of a similarity the other way round.
        sign = 1.0 if self.metric == "euclidean" else -1.0
        pos, neg = Side("hinge", sign, self.pos_margin), Side("hinge", -sign, self.neg_margin)
        stats = pairs.statistics(self.value, pos, neg, neg_totals=True)
        return self._reduce(stats), stats

    def _reduce(self, stats: Statistics) -> Tensor:
        if self.reduction == "none":
            return stats.pos + stats.neg
        if self.reduction == "sum":
            return stats.pos.sum() + stats.neg.sum()
        costly = self.reduction == "nonzero_mean"
        sizes = (stats.pos_slope, stats.neg_slope) if costly else (stats.pos_members, stats.neg_members)
        return mean(stats.pos, sizes[0].sum()) + mean(stats.neg, sizes[1].sum())


def contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    metric: str = "euclidean",
    positive: str = "all",
    reduction: str = "nonzero_mean",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Contrastive loss: [d_ip − pos_margin]₊ of positive and [neg_margin − d_in]₊ of negative pairs.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        pos_margin, neg_margin: distance from which a positive costs, and up to which a negative does.
        metric: "euclidean" distance, or "cosine" similarity (the inner product without `normalize`) with
            [pos_margin − s_ip]₊ and [s_in − neg_margin]₊: margins of 1 and 0 are usual there.
        positive: "all", or "easy": only the nearest positive of each query.
        reduction: "nonzero_mean" averages each side over its pairs that cost something and adds the two, "mean" over
            all its pairs, "sum" adds up both; "none" gives each query's sum. A side without pairs is 0.

    Returns:
        () loss, or (M,) for "none"; float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Hadsell et al., "Dimensionality reduction by learning an invariant mapping", CVPR 2006, eq. 4, with hinges that
        are not squared, as in pytorch-metric-learning; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> loss = F.contrastive_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8)
    """
    settings = Contrastive(
        pos_margin,
        neg_margin,
        metric,
        positive,
        reduction,
        normalize=normalize,
        ignore_index=ignore_index,
        check_finite=check_finite,
    )
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class ContrastiveLoss(Contrastive, PairLoss):
    """`contrastive_loss` as a module.

    `positive="easy"` gives Easy Positive Sampling (EPS), which is pytorch-metric-learning's
    BatchEasyHardMiner("easy", "all"). Where neither kind has more than one pair, that library returns 0; here such a
    batch counts.

    Args:
        pos_margin, neg_margin, metric, positive, reduction: as in `contrastive_loss`. `metric="cosine"` is
            pytorch-metric-learning's `distance=CosineSimilarity()`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (ordered pairs that cost something), mean_pos_distance and
            mean_neg_distance over those pairs; mean_pos_similarity and mean_neg_similarity for "cosine".

    Example:
        >>> loss = losses.ContrastiveLoss(neg_margin=0.8, positive="easy")
        >>> loss(embeddings, labels).backward()
    """
