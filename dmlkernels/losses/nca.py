"""NCA, and N-pair losses of the nearest positive (EP, EPHN, EPSHN)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.nearest_positive import mine_pairs
from ..ops.pair_loss import Options, Side, Statistics
from ._rows import RowLoss, Source, mean, softmax_cost, some


class Settings(NamedTuple):
    """The options of `nca_loss`, checked."""

    temperature: float
    positive: str
    negative: str

    @staticmethod
    def checked(name: str, temperature: float, positive: str, negative: str) -> Settings:
        _checks.one_of(name, "positive", positive, ("easy", "all"))
        _checks.one_of(name, "negative", negative, ("all", "hard", "semihard"))
        if (positive, negative) == ("all", "semihard"):
            expected = "'all' or 'hard' with positive='all' (semi-hard is relative to one positive)"
            _checks.fail(name, "negative", expected, repr(negative))
        return Settings(_checks.positive(name, "temperature", temperature), positive, negative)

    def loss(self, source: Source) -> tuple[Tensor, Statistics]:
        stats = self.statistics(source)
        cost, anchors = softmax_cost(stats)
        if self.negative != "all":
            anchors = anchors & some(stats.neg)
        return mean(cost, anchors.sum()), stats

    def statistics(self, source: Source) -> Statistics:
        """Log-sum-exps of −d²/(2τ)."""
        side = Side("exp", -1 / (2 * self.temperature))
        if self.negative == "all":
            return source.statistics(Options("squared", side, side))
        if source.indices_tuple is not None:
            _checks.fail(
                source.op, "indices_tuple", f"None with negative={self.negative!r}: a list has its negatives", "a list"
            )
        mined = mine_pairs(source.inputs, "easy", self.negative, source.check_finite)
        neg, neg_sum, neg_count = _of_one(mined.neg_distance, side)
        if self.positive == "all":
            positives = source.statistics(Options("squared", side, None))
            return positives._replace(neg=neg, neg_sum=neg_sum, neg_members=neg_count, neg_slope=neg_count)
        pos, pos_sum, pos_count = _of_one(mined.pos_distance, side)
        return Statistics(pos, neg, pos_sum, neg_sum, pos_count, neg_count, pos_count, neg_count)


def _of_one(distance: Tensor, side: Side) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp, sum and count (M,) of one pair a row; +inf is none."""
    there = distance.detach() != torch.inf
    squared = torch.where(there, distance, 0).square()
    return torch.where(there, side.scale * squared, -torch.inf), squared, there.to(distance.dtype)


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
    name = "nca_loss"
    settings = Settings.checked(name, temperature, positive, negative)
    inputs = _checks.pair_inputs(name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    return settings.loss(Source(name, inputs, positive, check_finite))[0]


class NCALoss(RowLoss):
    """`nca_loss` as a module: all positives and negatives by default, and a scale in place of the temperature.

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

    def __init__(
        self, softmax_scale: float = 1.0, positive: str = "all", negative: str = "all", **options: Any
    ) -> None:
        self.softmax_scale = _checks.positive("NCALoss", "softmax_scale", softmax_scale)
        settings = Settings.checked("NCALoss", 1 / (2 * softmax_scale), positive, negative)
        super().__init__(settings, "squared_distance", **options)

    def extra_repr(self) -> str:
        settings = {"softmax_scale": self.softmax_scale, **self.settings._asdict(), "normalize": self.normalize}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "temperature")
