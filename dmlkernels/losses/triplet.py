"""Triplet loss: of one triplet an anchor, of all triplets, of one pair with all of the other side, or of lists."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from .._options import choice, flag, number
from ..ops.nearest_positive import mine_pairs
from ..ops.pair_loss import Side
from ..ops.triplet import triplets
from ..reference import triplet as reference
from ..reference.pair_loss import softplus
from ._pairs import PairLoss, Pairs, PairSettings, listed_triplets, mean, pair_values, rows_at


class Summed(NamedTuple):
    """Of all triplets, each (): the sum of their terms, how many there are, and how many have a term that is not 0."""

    total: Tensor
    triplets: Tensor
    active: Tensor
    d_ap: Tensor | None = None  # summed distances, where there are not several triplets an anchor
    d_an: Tensor | None = None


@dataclasses.dataclass(eq=False, repr=False)
class Triplet(PairSettings):
    """The options of the loss, and its sum over the triplets that they choose."""

    op = "triplet_loss"

    margin: float = number(0.05)
    swap: bool = flag(False)
    positive: str = choice("all", "easy", "hard", "all")
    negative: str = choice("all", "hard", "semihard", "all")
    soft: bool = flag(False)
    reduction: str = choice("nonzero_mean", "nonzero_mean", "mean", "sum")

    def loss(self, pairs: Pairs) -> tuple[Tensor, Summed]:
        found = self._sum(pairs)
        if self.reduction == "sum":
            return found.total, found
        return mean(found.total, found.active if self.reduction == "nonzero_mean" else found.triplets), found

    def watched(self, found: Summed) -> dict[str, Tensor]:
        if found.d_ap is None or found.d_an is None:
            return {"triplets": found.triplets, "active_triplets": found.active}
        count = found.triplets
        distances = {"mean_pos_distance": mean(found.d_ap, count), "mean_neg_distance": mean(found.d_an, count)}
        return {"active_positives": count, "active_negatives": count, **distances, "active_triplets": found.active}

    def _sum(self, pairs: Pairs) -> Summed:
        if pairs.indices_tuple is not None:
            return self._of_lists(pairs)
        if "all" not in (self.positive, self.negative):
            return self._of_one_an_anchor(pairs)
        if self.swap:
            return self._with_every_swap(pairs)
        if self.positive == "all" and self.negative != "hard":
            # Of every positive: with all negatives, or with the nearest that is farther.
            soft, check_finite = self.soft, pairs.check_finite
            found = triplets(pairs.op, pairs.inputs, self.negative, self.margin, soft, check_finite)
            return Summed(found.loss_sum.sum(), found.count.sum(), found.nonzero.sum())
        return self._of_one_with_all(pairs)

    def _cost(self, d_ap: Tensor, d_an: Tensor) -> Tensor:
        violation = d_ap - d_an + self.margin
        return softplus(violation) if self.soft else violation.relu()

    def _of_lists(self, pairs: Pairs) -> Summed:
        _checks.pair_namespace(pairs.op, pairs.inputs, pairs.check_finite)
        x, gallery, normalize = pairs.inputs.embeddings, pairs.gallery(), pairs.inputs.normalize
        a, p, n = listed_triplets(pairs.op, pairs.indices_tuple, len(x), len(gallery))
        d_ap = pair_values(x[a], gallery[p], "distance", normalize)
        d_an = pair_values(x[a], gallery[n], "distance", normalize)
        if self.swap:
            d_an = torch.minimum(d_an, pair_values(gallery[p], gallery[n], "distance", normalize))
        return self._summed(d_ap, d_an, torch.ones_like(a, dtype=torch.bool))

    def _of_one_an_anchor(self, pairs: Pairs) -> Summed:
        mined = mine_pairs(pairs.inputs, self.positive, self.negative, pairs.check_finite)
        chosen = (mined.pos_index >= 0) & (mined.neg_index >= 0)
        # A NaN distance has no index, and must reach the loss.
        members = chosen | mined.pos_distance.isnan()
        d_ap = torch.where(members, mined.pos_distance, 0)
        d_an = torch.where(members, mined.neg_distance, 0)
        if self.swap:
            ends = (torch.where(chosen, index, -1) for index in (mined.pos_index, mined.neg_index))
            p, n = (rows_at(pairs.gallery(), index) for index in ends)
            between = pair_values(p, n, "distance", pairs.inputs.normalize)
            d_an = torch.minimum(d_an, torch.where(chosen, between, d_an))
        return self._summed(d_ap, d_an, members)

    def _summed(self, d_ap: Tensor, d_an: Tensor, members: Tensor) -> Summed:
        """Of triplets with these distances, which are 0 where there is no triplet."""
        terms = torch.where(members, self._cost(d_ap, d_an), 0)
        active = members & (terms.detach() != 0)
        return Summed(terms.sum(), members.sum(), active.sum(), d_ap.detach().sum(), d_an.detach().sum())

    def _of_one_with_all(self, pairs: Pairs) -> Summed:
        """One chosen pair an anchor, and all pairs of the other side: sums of [± d − bound]₊ over that side."""
        term = "softplus" if self.soft else "hinge"
        if self.positive == "all":
            mined = mine_pairs(pairs.inputs, "easy", self.negative, pairs.check_finite)
            chosen, index, bound = mined.neg_distance, mined.neg_index, mined.neg_distance - self.margin
            pos, neg = Side(term, 1.0), None
        else:
            if self.positive == "easy":
                chosen, index = pairs.nearest()
            else:
                chosen, index = mine_pairs(pairs.inputs, "hard", "hard", pairs.check_finite)[:2]
            bound = chosen + self.margin
            pos, neg = None, Side(term, -1.0)
        found = (index >= 0) | chosen.isnan()
        # With a bound of 0 no negative of an anchor without a positive costs anything.
        bounds = torch.where(found, bound, 0).expand(2, -1)
        stats = pairs.statistics("distance", pos, neg, bounds)
        side = stats.positives() if pos else stats.negatives()
        total, members, active = (torch.where(found, rows, 0).sum() for rows in (side.stat, side.members, side.slope))
        return Summed(total, members, members if self.soft else active)

    def _with_every_swap(self, pairs: Pairs) -> Summed:
        if _checks.pair_namespace(pairs.op, pairs.inputs, pairs.check_finite) is not None:
            raise ValueError(
                f"{pairs.op}: swap must be False for positive={self.positive!r} with negative={self.negative!r}, "
                "got True; choose easy or hard with hard or semihard, or run it N×N with "
                'dmlkernels.use_backend("reference")'
            )
        words = (self.positive, self.negative, self.margin, self.soft, self.swap)
        total, active, count = reference.triplet_rows(pairs.inputs, *words)
        return Summed(total.sum(), count.sum(), active.sum())


def triplet_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    positive: str = "easy",
    negative: str = "hard",
    margin: float = 0.2,
    soft: bool = False,
    swap: bool = False,
    reduction: str = "nonzero_mean",
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Triplet loss [d_ap − d_an + margin]₊ on in-batch selected positives and negatives.

    The defaults, easy × hard and a margin of 0.2, are not those of `losses.TripletMarginLoss`: all × all and 0.05.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        positive: "easy", "hard" or "all" positives of an anchor.
        negative: "hard", "semihard" (nearest that is farther than the triplet's positive) or "all".
        margin: δ.
        soft: softplus in place of the hinge.
        swap: use the positive-negative distance where it is smaller than the anchor-negative one. With "all" on a side
            on the reference backend only: it takes distances between the rows of the gallery, N×N.
        reduction: "nonzero_mean" over the terms that are not 0, "mean" over all triplets, or "sum". Anchors without a
            positive or a negative are left out; none left: 0.

    Returns:
        () loss, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Schroff et al., CVPR 2015, eq. 3; easy positives: Levi et al., ICCV 2021; Xuan et al., WACV 2020.

    Example:
        >>> loss = F.triplet_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8)
    """
    settings = Triplet(
        margin, swap, positive, negative, soft, reduction,
        normalize=normalize, ignore_index=ignore_index, check_finite=check_finite,
    )  # fmt: skip
    return settings.of(embeddings, labels, None, ref_emb, ref_labels, ids, ref_ids)[0]


class TripletMarginLoss(Triplet, PairLoss):
    """`triplet_loss` as a module, whose defaults are pytorch-metric-learning's: all × all and a margin of 0.05.

    The function's are easy × hard and 0.2.

    `positive="easy"` gives Easy Positive Sampling (EPS), with hard negatives EPHN, with semi-hard ones EPSHN; easy
    and hard are the words of pytorch-metric-learning's BatchEasyHardMiner. With a gallery, that library's swap takes a
    row of the batch in place of the positive; here the distance is that of the positive and the negative.

    Args:
        margin: δ.
        swap, positive, negative, soft, reduction: as in `triplet_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives, active_negatives, mean_pos_distance and mean_neg_distance of the triplets, one an
            anchor, or for "all" the number of triplets; and active_triplets, those that cost something.

    Example:
        >>> loss = losses.TripletMarginLoss(margin=0.2, positive="easy", negative="semihard")
        >>> loss(embeddings, labels).backward()
    """
