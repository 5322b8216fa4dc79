"""Circle loss."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .._options import above_zero, choice, number
from ..ops.pair_loss import Side, Statistics
from ..reference.pair_loss import softplus
from ._pairs import PairLoss, Pairs, PairSettings, nonzero_mean


@dataclasses.dataclass(eq=False, repr=False)
class Circle(PairSettings):
    """The options of `circle_loss`, and the loss."""

    op = "circle_loss"

    m: float = number(0.4)
    gamma: float = above_zero(80.0)
    positive: str = choice("all", "all", "easy")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        m, gamma = self.m, self.gamma
        pos = Side("exp", -gamma, base=1 - m, ramp=-1.0, origin=1 + m)
        neg = Side("exp", gamma, base=m, ramp=1.0, origin=-m)
        stats = pairs.statistics("similarity", pos, neg, neg_totals=True)
        return nonzero_mean(softplus(stats.pos + stats.neg)), stats


def circle_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    m: float = 0.4,
    gamma: float = 80.0,
    positive: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Circle loss log(1 + Σ_p e^{−γ[1 + m − s_p]₊(s_p − 1 + m)} · Σ_n e^{γ[s_n + m]₊(s_n − m)}) of each query.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`. The formula is made for cosines; with normalize=False it takes dot products.
        m: relaxation: the optimum of a positive is 1 + m, of a negative −m. The factors [·]₊ are constants of the
            gradient.
        gamma: γ, scale.
        positive: "all", or "easy" for the nearest positive (in Euclidean distance) alone.

    Returns:
        () mean over the queries whose loss is not 0, float32 (float64 for float64); a query that lacks either side has
        loss 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Sun et al., "Circle loss: a unified perspective of pair similarity optimization", CVPR 2020, section 3;
        easy positives: Levi et al., ICCV 2021.

    Example:
        >>> F.circle_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 4)
    """
    settings = Circle(m, gamma, positive, normalize=normalize, ignore_index=ignore_index, check_finite=check_finite)
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class CircleLoss(Circle, PairLoss):
    """`circle_loss` as a module.

    pytorch-metric-learning takes log(1 + e^x) for x itself above 20; here the difference, up to 2e-9, is kept.
    Where neither kind has more than one pair, that library returns 0; here such a batch counts.

    Args:
        m, gamma, positive: as in `circle_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs), mean_pos_similarity and mean_neg_similarity.

    Example:
        >>> loss = losses.CircleLoss(m=0.4, gamma=80)
        >>> loss(embeddings, labels).backward()
    """
