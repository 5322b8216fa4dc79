"""Triplet loss: one pair an anchor by mining, one with all pairs of the other side by row statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ..ops.nearest_positive import find_nearest, mine_pairs
from ..ops.pair_loss import Options as PairOptions
from ..ops.pair_loss import Side, statistics
from ..ops.triplet import triplets
from ..reference import triplet as reference
from ._base import PairLoss, mean_of
from ._listed import listed_distance, listed_triplets
from ._listed_statistics import rows_at
from ._rows import softplus


class Options(NamedTuple):
    """The options of `triplet_loss`, checked."""

    positive: str
    negative: str
    margin: float
    soft: bool
    swap: bool
    reduction: str

    @staticmethod
    def checked(
        name: str, positive: str, negative: str, margin: float, soft: bool, swap: bool, reduction: str
    ) -> Options:
        _checks.one_of(name, "positive", positive, ("easy", "hard", "all"))
        _checks.one_of(name, "negative", negative, ("hard", "semihard", "all"))
        _checks.one_of(name, "reduction", reduction, ("nonzero_mean", "mean", "sum"))
        return Options(positive, negative, _checks.number(name, "margin", margin), soft, swap, reduction)

    def hinge(self, gap: Tensor) -> Tensor:
        """Cost of d_ap − d_an."""
        violation = gap + self.margin
        return softplus(violation) if self.soft else violation.clamp_min(0)

    def reduce(self, summed: Summed) -> Tensor:
        if self.reduction == "sum":
            return summed.total
        return mean_of(summed.total, summed.active if self.reduction == "nonzero_mean" else summed.triplets)


class Summed(NamedTuple):
    """Of all triplets, each (): their summed terms, how many there are, and how many have a term that is not 0."""

    total: Tensor
    triplets: Tensor
    active: Tensor

    @staticmethod
    def of(terms: Tensor, members: Tensor) -> Summed:
        """From terms that are 0 where there is no triplet."""
        return Summed(terms.sum(), members.sum(), (members & (terms.detach() != 0)).sum())


class Mined(NamedTuple):
    """Terms (M,) of one triplet an anchor, which anchors have one, and their distances (0 for the others)."""

    terms: Tensor
    members: Tensor
    d_ap: Tensor
    d_an: Tensor


def _mined(inputs: _checks.PairInputs, options: Options, check_finite: bool) -> Mined:
    mined = mine_pairs(inputs, options.positive, options.negative, check_finite)
    chosen = (mined.pos_index >= 0) & (mined.neg_index >= 0)
    # A NaN distance has no index, and must reach the loss.
    members = chosen | mined.pos_distance.isnan()
    d_ap = torch.where(members, mined.pos_distance, 0)
    d_an = torch.where(members, mined.neg_distance, 0)
    if options.swap:
        gallery = inputs.embeddings if inputs.ref_emb is None else inputs.ref_emb
        p, n = (rows_at(gallery, torch.where(chosen, index, -1)) for index in (mined.pos_index, mined.neg_index))
        d_an = torch.minimum(d_an, torch.where(chosen, listed_distance(p, n, inputs.normalize), d_an))
    return Mined(torch.where(members, options.hinge(d_ap - d_an), 0), members, d_ap, d_an)


def _one_side(inputs: _checks.PairInputs, options: Options, check_finite: bool) -> Summed:
    """One chosen pair an anchor with all pairs of the other side: sums of h(d_ap − d_an + margin) over that side."""
    op, h = "triplet_loss", "softplus" if options.soft else "hinge"
    if options.positive == "all":
        mined = mine_pairs(inputs, "easy", options.negative, check_finite)
        chosen, index, shift = mined.neg_distance, mined.neg_index, -options.margin
        sums = PairOptions("distance", Side(h, 1.0), None)
    else:
        if options.positive == "easy":
            chosen, index = find_nearest(op, inputs, check_finite)
        else:
            chosen, index = mine_pairs(inputs, "hard", "hard", check_finite)[:2]
        shift, sums = options.margin, PairOptions("distance", None, Side(h, -1.0))
    found = (index >= 0) | chosen.isnan()
    # With a bound of 0 no negative of an anchor without a positive costs anything.
    bound = torch.where(found, chosen + shift, 0)
    stats = statistics(op, inputs, sums, bound.expand(2, -1), check_finite)
    side = stats.positives() if sums.pos else stats.negatives()
    stat, members, cost = (torch.where(found, rows, 0) for rows in (side.stat, side.members, side.slope))
    triplets = members.sum()
    return Summed(stat.sum(), triplets, triplets if options.soft else cost.sum())


def _several(inputs: _checks.PairInputs, options: Options, check_finite: bool) -> Summed:
    """Several triplets an anchor."""
    kernels = _checks.pair_namespace("triplet_loss", inputs, check_finite) is not None
    if kernels and options.swap:
        raise ValueError(
            f"triplet_loss: swap must be False for positive={options.positive!r} with negative={options.negative!r}, "
            "got True; choose easy or hard with hard or semihard, or run it N×N with "
            'dmlkernels.use_backend("reference")'
        )
    if options.positive == "all" and options.negative != "hard" and not options.swap:
        found = triplets("triplet_loss", inputs, options.negative, options.margin, options.soft, check_finite)
        return Summed(*(rows.sum() for rows in (found.loss_sum, found.count, found.nonzero)))
    if not kernels:
        loss_sum, nonzero, count = reference.triplet_rows(inputs, *options[:5])
        return Summed(loss_sum.sum(), count.sum(), nonzero.sum())
    return _one_side(inputs, options, check_finite)


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
    name = "triplet_loss"
    options = Options.checked(name, positive, negative, margin, soft, swap, reduction)
    inputs = _checks.pair_inputs(name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    if "all" in (positive, negative):
        return options.reduce(_several(inputs, options, check_finite))
    mined = _mined(inputs, options, check_finite)
    return options.reduce(Summed.of(mined.terms, mined.members))


class TripletMarginLoss(PairLoss):
    """`triplet_loss` as a module.

    `positive="easy"` gives Easy Positive Sampling (EPS), with hard negatives EPHN, with semi-hard ones EPSHN; easy
    and hard are the words of pytorch-metric-learning's BatchEasyHardMiner. With a gallery, that library's swap takes a
    row of the batch in place of the positive; here the distance is that of the positive and the negative.

    Args:
        margin: δ.
        swap, positive, negative, soft, reduction: as in `triplet_loss`. The default is all × all.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives, active_negatives, mean_pos_distance and mean_neg_distance of the triplets, one an
            anchor, or for "all" the number of triplets; and active_triplets, those that cost something.

    Example:
        >>> loss = losses.TripletMarginLoss(margin=0.2, positive="easy", negative="semihard")
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        positive: str = "all",
        negative: str = "all",
        soft: bool = False,
        reduction: str = "nonzero_mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.settings = Options.checked("TripletMarginLoss", positive, negative, margin, soft, swap, reduction)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings._asdict().items())

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
        """() loss; with `indices_tuple`, of the listed triplets (or of every triplet of the listed pairs) only."""
        inputs = self.pair_inputs("TripletMarginLoss", embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        if indices_tuple is not None:
            _checks.pair_namespace("TripletMarginLoss", inputs, self.check_finite)
            return self._listed(inputs.embeddings, indices_tuple, inputs.ref_emb)
        if "all" in (self.settings.positive, self.settings.negative):
            summed = _several(inputs, self.settings, self.check_finite)
            self.last_stats = {"triplets": summed.triplets, "active_triplets": summed.active}
            return self.settings.reduce(summed)
        mined = _mined(inputs, self.settings, self.check_finite)
        return self._finish(*mined)

    def _listed(self, embeddings: Tensor, indices_tuple: tuple[Tensor, ...], ref_emb: Tensor | None) -> Tensor:
        gallery = embeddings if ref_emb is None else ref_emb
        a, p, n = listed_triplets("TripletMarginLoss", indices_tuple, embeddings.shape[0], gallery.shape[0])
        d_ap = listed_distance(embeddings[a], gallery[p], self.normalize)
        d_an = listed_distance(embeddings[a], gallery[n], self.normalize)
        if self.settings.swap:
            d_an = torch.minimum(d_an, listed_distance(gallery[p], gallery[n], self.normalize))
        return self._finish(self.settings.hinge(d_ap - d_an), torch.ones_like(a, dtype=torch.bool), d_ap, d_an)

    def _finish(self, terms: Tensor, members: Tensor, d_ap: Tensor, d_an: Tensor) -> Tensor:
        summed = Summed.of(terms, members)
        count = summed.triplets
        self.set_stats(count, count, d_ap.detach().sum(), d_an.detach().sum())
        self.last_stats["active_triplets"] = summed.active
        return self.settings.reduce(summed)
