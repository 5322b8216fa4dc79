"""Margin loss: hinges of the distances on either side of a boundary β that may be learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ._base import PairLoss
from ._margin import Settings, boundary_of, drawn_statistics, weighted_statistics
from ._rows import Source


def margin_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    beta: float | Tensor = 1.2,
    margin: float = 0.2,
    nu: float = 0.0,
    positive: str = "all",
    negative: str = "all",
    count: str | None = None,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    uniforms: Tensor | None = None,
    generator: torch.Generator | None = None,
    normalize: bool = True,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    ignore_index: int | None = None,
    check_finite: bool = False,
) -> Tensor:
    """Margin loss: [margin + d_ip − β]₊ of positive and [margin + β − d_in]₊ of negative pairs.

    Args:
        embeddings, labels, ref_emb, ref_labels, normalize, ids, ref_ids, ignore_index, check_finite: as in
            `nearest_positive`.
        beta: β, a number, a () tensor, or (C,) with a β for each class, at the query's label; differentiable.
        margin: δ.
        nu: ν of the term ν·β that keeps a learned β small. A β for each class is averaged over what the hinges are
            averaged over, once for each triplet of its queries ("pairs": once for each positive).
        positive: "all", or "easy": only the nearest positive of each query.
        negative: "all", or "distance_weighted": one negative for each positive of a query, drawn so that every distance
            is as likely as any other; that law is of normalised rows.
        count: "triplets" counts a pair once for each triplet that it is in, "pairs" once, both over the queries that
            have a positive and a negative. None: "pairs" with easy positives, "triplets" otherwise. Drawn negatives
            pair up with the positives, so both are the same.
        cutoff: distances below it count as this distance when negatives are drawn.
        nonzero_loss_cutoff: distance from which no negative is drawn.
        uniforms: (M, S) numbers in [0, 1) at which the negatives are drawn, at most S for each query. None draws S for
            the query with most positives, and so waits for a GPU to count them (easy positives need one).
        generator: of the uniforms, where they are None; on the embeddings' device. torch.compile takes none.

    Returns:
        () mean over the pairs that cost something, float32 (float64 for float64). Queries without a positive or without
        a negative (for "distance_weighted": one to draw) are left out; none left: 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or option, or with `check_finite`.

    Source:
        Wu et al., "Sampling matters in deep embedding learning", ICCV 2017, eq. 4 and 5; "triplets" as
        pytorch-metric-learning averages; easy positives: Levi et al., ICCV 2021.

    Example:
        >>> loss = F.margin_loss(torch.randn(64, 16, requires_grad=True), torch.arange(64) // 8, positive="easy")
    """
    op = "margin_loss"
    settings = Settings.checked(op, margin, nu, positive, negative, count, cutoff, nonzero_loss_cutoff)
    inputs = _checks.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids, ignore_index, normalize)
    per_class = isinstance(beta, Tensor) and beta.numel() > 1
    boundary = boundary_of(op, beta, inputs)
    source = Source(op, inputs, positive, check_finite)
    if negative == "all":
        weighted = weighted_statistics(source, settings, boundary)
    else:
        weighted = drawn_statistics(source, settings, boundary, uniforms, generator)
    return weighted.loss(settings.nu, boundary, per_class)


class MarginLoss(PairLoss):
    """`margin_loss` as a module, with a β that it learns if asked.

    `positive="easy"` gives Easy Positive Sampling (EPS): with `count="triplets"` it is pytorch-metric-learning's
    BatchEasyHardMiner("easy", "all").

    Args:
        margin, nu: as in `margin_loss`; ν counts only where β is learned.
        beta: β, or what it is before training.
        learn_beta: make β a parameter `beta`, of shape (1,) or (num_classes,).
        num_classes: with `learn_beta`, a β for each class; labels are then in [0, num_classes).
        positive, negative, count, cutoff, nonzero_loss_cutoff, generator: as in `margin_loss`.
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (ordered pairs that cost something), mean_pos_distance and
            mean_neg_distance over those pairs, and mean_beta.

    Example:
        >>> loss = losses.MarginLoss(learn_beta=True, num_classes=100, negative="distance_weighted")
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0.0,
        beta: float = 1.2,
        learn_beta: bool = False,
        num_classes: int | None = None,
        positive: str = "all",
        negative: str = "all",
        count: str | None = None,
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        op = "MarginLoss"
        self.settings = Settings.checked(op, margin, nu, positive, negative, count, cutoff, nonzero_loss_cutoff)
        if num_classes is not None and (isinstance(num_classes, bool) or not isinstance(num_classes, int)):
            _checks.fail(op, "num_classes", "an int or None", repr(num_classes))
        if num_classes is not None and num_classes < 1:
            _checks.fail(op, "num_classes", "at least 1", num_classes)
        start = _checks.number(op, "beta", beta)
        self.learn_beta, self.num_classes, self.generator = learn_beta, num_classes, generator
        self.beta: float | nn.Parameter = start
        if learn_beta:
            self.beta = nn.Parameter(torch.full((num_classes or 1,), start))

    def extra_repr(self) -> str:
        beta = self.beta if isinstance(self.beta, float) else tuple(self.beta.shape)
        settings = {**self.settings._asdict(), "beta": beta, "learn_beta": self.learn_beta, "normalize": self.normalize}
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
        """() loss.

        With `indices_tuple`, of the listed pairs or triplets only, whatever ids or ignore_index say; none is drawn.
        """
        op, settings, beta = "MarginLoss", self.settings, self.beta
        inputs = self.pair_inputs(op, embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        boundary = boundary_of(op, beta, inputs)
        distinct = settings.counted == "pairs"
        source = Source(op, inputs, settings.positive, self.check_finite, indices_tuple, distinct)
        if settings.negative == "all" or indices_tuple is not None:
            weighted = weighted_statistics(source, settings, boundary)
        else:
            weighted = drawn_statistics(source, settings, boundary, None, self.generator)
        self.set_stats(*weighted.totals())
        self.last_stats["mean_beta"] = torch.as_tensor(beta).detach().mean()
        per_class = isinstance(beta, Tensor) and beta.numel() > 1
        return weighted.loss(settings.nu if self.learn_beta else 0.0, boundary, per_class)
