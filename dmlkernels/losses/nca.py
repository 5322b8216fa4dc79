"""NCA, and N-pair losses of the nearest positive (EP, EPHN, EPSHN)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from .. import _checks
from .._options import above_zero, choice
from ..ops.nearest_positive import mine_pairs
from ..ops.pair_loss import OneSide, Side, Statistics
from ._pairs import PairLoss, Pairs, PairSettings, mean, softmax_cost, some


@dataclasses.dataclass(eq=False, repr=False)
class NCA(PairSettings):
    """The options of the losses, and the loss."""

    op = "nca_loss"
    value = "squared_distance"

    softmax_scale: float = above_zero(1.0)
    positive: str = choice("all", "easy", "all")
    negative: str = choice("all", "all", "hard", "semihard")

    def __post_init__(self) -> None:
        self._check_words()

    def _check_words(self) -> None:
        if (self.positive, self.negative) == ("all", "semihard"):
            expected = "'all' or 'hard' with positive='all' (semi-hard is relative to one positive)"
            _checks.fail(self.op, "negative", expected, repr(self.negative))

    def loss(self, pairs: Pairs) -> tuple[Tensor, Statistics]:
        self._check_words()
        stats = self._statistics(pairs, Side("exp", -self.softmax_scale))
        cost, anchors = softmax_cost(stats)
        if self.negative != "all":
            anchors = anchors & some(stats.neg)
        return mean(cost, anchors.sum()), stats

    def _statistics(self, pairs: Pairs, side: Side) -> Statistics:
        """Log-sum-exps of −scale·d²."""
        if self.negative == "all":
            return pairs.statistics("squared", side, side, neg_totals=True)
        if pairs.indices_tuple is not None:
            expected = f"None with negative={self.negative!r}: a list has its negatives"
            _checks.fail(pairs.op, "indices_tuple", expected, "a list")
        mined = mine_pairs(pairs.inputs, "easy", self.negative, pairs.check_finite)
        negatives = _of_one(mined.neg_distance, side)
        if self.positive == "all":
            return Statistics.of(pairs.statistics("squared", side, None).positives(), negatives)
        return Statistics.of(_of_one(mined.pos_distance, side), negatives)


def _of_one(distance: Tensor, side: Side) -> OneSide:
    """The statistics (M,) of one pair a row; +inf is none."""
    there = distance.detach() != torch.inf
    squared = torch.where(there, distance, 0).square()
    nothing, count = torch.full_like(squared.detach(), -torch.inf), there.to(distance.dtype)
    return OneSide(torch.where(there, side.scale * squared, nothing), nothing, squared, count, count)


def nca_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    temperature: float = 0.1,
    positive: str = "easy",
    negative: str = "all",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """NCA or N-pair loss −log Σ_p e^{−d_p²/2τ}/(Σ_p e^{−d_p²/2τ} + Σ_n e^{−d_n²/2τ}) of each query.

    The defaults, easy positives and τ = 0.1, are not those of `losses.NCALoss`: all positives and a scale of 1 (τ = ½).
    For unit rows −d²/2τ is s/τ up to a constant, so this is the softmax of similarities at temperature τ; with
    normalize=False it is that of squared distances.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        temperature: τ.
        positive: "easy" for the nearest positive alone (with negative="all": EP; "hard": EPHN; "semihard": EPSHN), or
            "all" for their sum (NCA).
        negative: "all", "hard" (nearest), or with easy positives "semihard" (nearest that is farther than the
            positive).

    Returns:
        () mean over the queries that have a positive, float32 (float64 for float64). A query without negatives has loss
        0; with "hard" and "semihard" it is left out.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Goldberger et al., "Neighbourhood components analysis", NeurIPS 2004, section 2, with the logarithm of each
        query's probability; Xuan et al., "Improved embeddings with easy positive triplet mining", WACV 2020, section 3.
        Their code also drops positives of similarity above 0.9999 and queries whose positive has one up to 0: not here.

    Example:
        >>> F.nca_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 4, negative="semihard")
    """
    temperature = _checks.positive("nca_loss", "temperature", temperature)
    settings = NCA(
        1 / (2 * temperature), positive, negative,
        normalize=normalize, ignore_index=ignore_index, check_finite=check_finite,
    )  # fmt: skip
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class NCALoss(NCA, PairLoss):
    """`nca_loss` as a module, with a scale in place of the temperature, and other defaults than the function.

    Those are pytorch-metric-learning's: all positives and negatives, and a scale of 1, which is a temperature of ½.
    `positive="easy"` gives EP, with hard negatives EPHN, with semi-hard ones EPSHN; easy, hard and semihard are the
    words of pytorch-metric-learning's BatchEasyHardMiner. In that library a query whose probability is rounded to 0 is
    left out, and a miner weighs queries; here such a query counts with its loss, and only listed pairs take part.

    Args:
        softmax_scale: factor of −d², 1/(2·temperature): 5 is a temperature of 0.1.
        positive, negative: as in `nca_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (pairs), mean_pos_squared_distance and
            mean_neg_squared_distance.

    Raises:
        ValueError: as `nca_loss`, and for indices_tuple with hard or semi-hard negatives.

    Example:
        >>> loss = losses.NCALoss(softmax_scale=5, positive="easy", negative="semihard")
        >>> loss(embeddings, labels).backward()
    """
