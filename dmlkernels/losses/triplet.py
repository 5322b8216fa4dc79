"""Triplet loss on the distances that `mine` selects."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from .. import _checks
from ..ops.nearest_positive import mine
from ..reference import triplet as reference
from ._base import PairLoss
from ._listed import listed_distance, listed_triplets

REDUCTIONS = ("nonzero_mean", "mean", "sum")


def reduce(terms: Tensor, members: Tensor, reduction: str) -> Tensor:
    """Reduce the terms that are members; the others are 0 already."""
    if reduction == "sum":
        return terms.sum()
    counted = members & (terms != 0) if reduction == "nonzero_mean" else members
    return terms.sum() / counted.sum().clamp_min(1)


def _hinge(violation: Tensor, soft: bool) -> Tensor:
    return nnf.softplus(violation) if soft else violation.clamp_min(0)


def _mined_terms(
    arguments: tuple, options: dict, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    mined = mine(*arguments, positive=positive, negative=negative, **options)
    chosen = (mined.pos_index >= 0) & (mined.neg_index >= 0)
    # A NaN distance has no index, and must reach the loss.
    members = chosen | mined.pos_distance.isnan()
    d_ap = torch.where(members, mined.pos_distance, 0)
    d_an = torch.where(members, mined.neg_distance, 0)
    stats = {"pos_distance": d_ap.detach(), "neg_distance": d_an.detach(), "members": members}
    if swap:
        gallery = arguments[0] if arguments[2] is None else arguments[2]
        ends = gallery[mined.pos_index.clamp_min(0)], gallery[mined.neg_index.clamp_min(0)]
        d_an = torch.minimum(d_an, torch.where(chosen, listed_distance(*ends, options["normalize"]), d_an))
    return torch.where(members, _hinge(d_ap - d_an + margin, soft), 0), members, stats


def _all_terms(
    arguments: tuple, options: dict, positive: str, negative: str, margin: float, soft: bool, swap: bool
) -> tuple[Tensor, Tensor]:
    embeddings, labels, ref_emb, ref_labels = arguments
    pair = {name: options[name] for name in ("ids", "ref_ids", "ignore_index", "normalize")}
    inputs = _checks.pair_inputs("triplet_loss", embeddings, labels, ref_emb, ref_labels, **pair)
    if _checks.pair_namespace("triplet_loss", inputs, options["check_finite"]) is not None:
        raise ValueError(
            f"triplet_loss: positive={positive!r} with negative={negative!r} has no kernel yet; choose easy or hard with "
            'hard or semihard, or run it N×N with dmlkernels.use_backend("reference")'
        )
    return reference.triplet(inputs, positive, negative, margin, soft, swap)


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
        negative: "hard", "semihard" (nearest that is farther than the triplet's positive) or "all". "all" on either side
            runs on the reference backend only, so far.
        margin: δ.
        soft: softplus in place of the hinge.
        swap: use the positive-negative distance where it is smaller than the anchor-negative one.
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
    for name, value, choices in (
        ("positive", positive, ("easy", "hard", "all")),
        ("negative", negative, ("hard", "semihard", "all")),
        ("reduction", reduction, REDUCTIONS),
    ):
        _checks.one_of("triplet_loss", name, value, choices)
    options = {"normalize": normalize, "ids": ids, "ref_ids": ref_ids, "ignore_index": ignore_index}
    options["check_finite"] = check_finite
    arguments = (embeddings, labels, ref_emb, ref_labels)
    if "all" in (positive, negative):
        terms, members = _all_terms(arguments, options, positive, negative, margin, soft, swap)
    else:
        terms, members, _ = _mined_terms(arguments, options, positive, negative, margin, soft, swap)
    return reduce(terms, members, reduction)


class TripletMarginLoss(PairLoss):
    """`triplet_loss` as a module.

    `positive="easy"` gives Easy Positive Sampling (EPS), with hard negatives EPHN, with semi-hard ones EPSHN; the pairs of
    easy/hard words are those of pytorch-metric-learning's BatchEasyHardMiner.

    Args:
        margin: δ.
        swap, positive, negative, soft, reduction: as in `triplet_loss`. The default, all × all, runs on the reference
            backend only, so far.
        **options: normalize, ignore_index, check_finite.
    """

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        positive: str = "all",
        negative: str = "all",
        soft: bool = False,
        reduction: str = "nonzero_mean",
        **options: bool,
    ) -> None:
        super().__init__(**options)
        for name, value, choices in (
            ("positive", positive, ("easy", "hard", "all")),
            ("negative", negative, ("hard", "semihard", "all")),
            ("reduction", reduction, REDUCTIONS),
        ):
            _checks.one_of("TripletMarginLoss", name, value, choices)
        self.margin, self.swap, self.soft = margin, swap, soft
        self.positive, self.negative, self.reduction = positive, negative, reduction

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
        chosen = (self.positive, self.negative, self.margin, self.soft, self.swap)
        arguments = (embeddings, labels, ref_emb, ref_labels)
        if indices_tuple is not None:
            return self._listed(embeddings, indices_tuple, ref_emb)
        options = self.pair_options(ids, ref_ids)
        if "all" in chosen[:2]:
            terms, members = _all_terms(arguments, options, *chosen)
            self.last_stats = {"active_triplets": (terms.detach() != 0).sum()}
            return reduce(terms, members, self.reduction)
        terms, members, stats = _mined_terms(arguments, options, *chosen)
        count = stats["members"].sum()
        self.set_stats(count, count, stats["pos_distance"].sum(), stats["neg_distance"].sum())
        self.last_stats["active_triplets"] = (terms.detach() != 0).sum()
        return reduce(terms, members, self.reduction)

    def _listed(self, embeddings: Tensor, indices_tuple: tuple[Tensor, ...], ref_emb: Tensor | None) -> Tensor:
        a, p, n = listed_triplets("TripletMarginLoss", indices_tuple)
        gallery = embeddings if ref_emb is None else ref_emb
        d_ap = listed_distance(embeddings[a], gallery[p], self.normalize)
        d_an = listed_distance(embeddings[a], gallery[n], self.normalize)
        if self.swap:
            d_an = torch.minimum(d_an, listed_distance(gallery[p], gallery[n], self.normalize))
        terms = _hinge(d_ap - d_an + self.margin, self.soft)
        self.set_stats(*(torch.tensor(len(a)),) * 2, d_ap.detach().sum(), d_an.detach().sum())
        self.last_stats["active_triplets"] = (terms.detach() != 0).sum()
        return reduce(terms, torch.ones_like(terms, dtype=torch.bool), self.reduction)
