"""Contrastive loss: hinges of the distance, or of the similarity, of every pair."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import _checks
from ..ops.pair_loss import Options, Side, Statistics
from ._base import PairLoss, mean_of
from ._rows import Source


class Settings(NamedTuple):
    """The options of `contrastive_loss`, checked."""

    pos_margin: float
    neg_margin: float
    metric: str
    positive: str
    reduction: str

    @staticmethod
    def checked(op: str, pos_margin: float, neg_margin: float, metric: str, positive: str, reduction: str) -> Settings:
        margins = _checks.number(op, "pos_margin", pos_margin), _checks.number(op, "neg_margin", neg_margin)
        _checks.one_of(op, "metric", metric, ("euclidean", "cosine"))
        _checks.one_of(op, "positive", positive, ("all", "easy"))
        _checks.one_of(op, "reduction", reduction, ("nonzero_mean", "mean", "sum", "none"))
        return Settings(*margins, metric, positive, reduction)

    def hinges(self) -> Options:
        """[d − pos_margin]₊ and [neg_margin − d]₊; of a similarity the other way round."""
        sign, value = (1.0, "distance") if self.metric == "euclidean" else (-1.0, "similarity")
        return Options(value, Side("hinge", sign, self.pos_margin), Side("hinge", -sign, self.neg_margin))

    def reduce(self, found: Statistics) -> Tensor:
        if self.reduction == "none":
            return found.pos + found.neg
        pos, neg = found.pos.sum(), found.neg.sum()
        if self.reduction == "sum":
            return pos + neg
        costly = self.reduction == "nonzero_mean"
        sizes = (found.pos_slope, found.neg_slope) if costly else (found.pos_members, found.neg_members)
        return mean_of(pos, sizes[0].sum()) + mean_of(neg, sizes[1].sum())


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
    op = "contrastive_loss"
    settings = Settings.checked(op, pos_margin, neg_margin, metric, positive, reduction)
    inputs = _checks.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return settings.reduce(Source(op, inputs, positive, check_finite).statistics(settings.hinges()))


class ContrastiveLoss(PairLoss):
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

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        metric: str = "euclidean",
        positive: str = "all",
        reduction: str = "nonzero_mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.settings = Settings.checked("ContrastiveLoss", pos_margin, neg_margin, metric, positive, reduction)

    def extra_repr(self) -> str:
        settings = {**self.settings._asdict(), "normalize": self.normalize}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        """() loss, or (M,) for reduction="none".

        With `indices_tuple`, of the listed pairs only, each as often as it is listed, whatever ids or ignore_index say.
        """
        op, settings = "ContrastiveLoss", self.settings
        inputs = self.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        source = Source(op, inputs, settings.positive, self.check_finite, indices_tuple, distinct=False)
        found = source.statistics(settings.hinges())
        value = "distance" if settings.metric == "euclidean" else "similarity"
        columns = found.pos_slope, found.neg_slope, found.pos_sum, found.neg_sum
        pos, neg, pos_sum, neg_sum = (column.sum() for column in columns)
        self.set_stats(pos, neg, pos_sum, neg_sum, value=value)
        return settings.reduce(found)
