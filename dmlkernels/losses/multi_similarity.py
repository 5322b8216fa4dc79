"""Multi-similarity loss and its mining."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .._options import above_zero, choice, number
from ..ops.pair_loss import Side, Statistics
from ..reference.pair_loss import softplus
from ._pairs import PairLoss, Pairs, PairSettings, mean, some


def _sharp(dtype: torch.dtype) -> float:
    """T for which log Σ e^{Ts} / T is the largest s to within ln(N)/T, far below what rounding does to s.

    A power of two, so that scaling rounds nothing; and T·s has to stay above the -1e30 that kernels take for no score:
    rows that are not normalised may be 1e5 long, in float32 1e8.
    """
    return 2.0**60 if dtype == torch.float64 else 2.0**40


@dataclasses.dataclass(eq=False, repr=False)
class MultiSimilarity(PairSettings):
    """The options of `multi_similarity_loss`, and the loss."""

    op = "multi_similarity_loss"

    alpha: float = above_zero(2.0)
    beta: float = above_zero(50.0)
    base: float = number(0.5)
    epsilon: float | None = number(None)
    positive: str = choice("all", "all", "easy")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        bounds = None if self.epsilon is None else self.bounds(pairs, self.epsilon)
        pos, neg = Side("exp", -self.alpha, self.base), Side("exp", self.beta, self.base)
        stats = pairs.statistics("similarity", pos, neg, bounds, neg_totals=True)
        rows = softplus(stats.pos) / self.alpha + softplus(stats.neg) / self.beta
        if self.positive == "easy":
            anchors = some(stats.pos)
            return mean(torch.where(anchors, rows, 0), anchors.sum()), stats
        return mean(rows, pairs.queries()), stats

    @torch.no_grad()
    def bounds(self, pairs: Pairs, epsilon: float) -> Tensor:
        """(2, M): positives below the first and negatives above the second are kept."""
        sharp = _sharp(pairs.inputs.embeddings.dtype)
        easy = self.positive == "easy"
        extreme = pairs.statistics("similarity", Side("exp", -sharp), None if easy else Side("exp", sharp))
        # Of no positive the least is +inf and of no negative the largest −inf: then the other side keeps nothing.
        least, largest = extreme.pos / -sharp, extreme.neg / sharp
        return torch.stack([torch.full_like(least, torch.inf) if easy else largest + epsilon, least - epsilon])


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = None,
    positive: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Multi-similarity loss log(1 + Σ_p e^{−α(s_p − base)})/α + log(1 + Σ_n e^{β(s_n − base)})/β of each query.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`; with normalize=False similarities are dot products.
        alpha: α, scale of the positives.
        beta: β, scale of the negatives.
        base: similarity around which both turn.
        epsilon: mine, keeping positives with s_p − ε < max_n s_n and negatives with s_n + ε > min_p s_p, strictly; None
            keeps all. A query that lacks one side then keeps nothing of the other.
        positive: "all", or "easy" for the nearest positive (in Euclidean distance) alone, which mining never drops.

    Returns:
        () mean over the queries, float32 (float64 for float64). A side that a query lacks counts 0; with easy positives
        a query without a positive is left out.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Wang et al., "Multi-similarity loss with general pair weighting for deep metric learning", CVPR 2019,
        section 4, its mining included; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> F.multi_similarity_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 4, epsilon=0.1)
    """
    settings = MultiSimilarity(
        alpha, beta, base, epsilon, positive, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite
    )
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class MultiSimilarityLoss(MultiSimilarity, PairLoss):
    """`multi_similarity_loss` as a module.

    Where pytorch-metric-learning takes a distance, this is its loss of CosineSimilarity, or without `normalize` of
    DotProductSimilarity.

    `epsilon` mines as pytorch-metric-learning's MultiSimilarityMiner(epsilon) does. Where neither kind has more than
    one pair, that library returns 0; here such a batch counts.

    Args:
        alpha, beta, base, epsilon, positive: as in `multi_similarity_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs that mining keeps), mean_pos_similarity and
            mean_neg_similarity over those pairs.

    Example:
        >>> loss = losses.MultiSimilarityLoss(epsilon=0.1)
        >>> loss(embeddings, labels).backward()
    """
