"""Ranked List Loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..ops.ranked_list import loss_and_totals, resolve_options
from ..reference.ranked_list import PML_EPS
from ._base import PairLoss
from ._listed import listed_distance, listed_pairs


class RankedListLoss(PairLoss):
    """`ranked_list_loss` as a module; the defaults are RLL-Simpler's.

    Args:
        margin, alpha, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode,
            reduction: as in `ranked_list_loss`. `positive="easy"` gives Easy Positive Sampling (EPS).
        **options: normalize, ignore_index, check_finite.

    Attributes:
        last_stats: active_positives and active_negatives (ordered pairs in the non-trivial sets), mean_pos_distance and
            mean_neg_distance over those pairs.

    Example:
        >>> loss = losses.RankedListLoss(margin=0.4)
        >>> loss(embeddings, labels).backward()
    """

    def __init__(
        self,
        margin: float = 0.4,
        alpha: float | None = None,
        pos_temperature: float = 0.0,
        neg_temperature: float = 10.0,
        neg_weight: float | None = None,
        form: str = "tpami",
        weight_grad: bool = False,
        grad: str = "full",
        positive: str = "all",
        eps_mode: str = "none",
        reduction: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        _checks.one_of("RankedListLoss", "reduction", reduction, ("mean", "sum", "none"))
        self.reduction = reduction
        self.settings = resolve_options(
            alpha, margin, pos_temperature, neg_temperature, neg_weight, form, weight_grad, grad, positive, eps_mode
        )

    def extra_repr(self) -> str:
        settings = {**self.settings._asdict(), "reduction": self.reduction, "normalize": self.normalize}
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

        With `indices_tuple`, of the listed pairs only, whatever ids or ignore_index say.
        """
        inputs = self.pair_inputs("RankedListLoss", embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        if indices_tuple is not None:
            _checks.pair_namespace("RankedListLoss", inputs, self.check_finite)
            return self._listed(embeddings, indices_tuple, ref_emb)
        loss, totals = loss_and_totals(inputs, self.settings, self.reduction, self.check_finite)
        self.set_stats(*totals.unbind())
        return loss

    def _listed(self, embeddings: Tensor, indices_tuple: tuple[Tensor, ...], ref_emb: Tensor | None) -> Tensor:
        """The sums of `reference.ranked_list` over the listed pairs, gathered."""
        options = self.settings
        gallery = embeddings if ref_emb is None else ref_emb
        a1, p, a2, n = listed_pairs("RankedListLoss", indices_tuple, embeddings.shape[0], gallery.shape[0])
        rows = embeddings.shape[0]
        loss, measured = [], []
        for anchor, other, sign, boundary, temperature in (
            (a1, p, 1.0, options.alpha - options.margin, options.pos_temperature),
            (a2, n, -1.0, options.alpha, options.neg_temperature),
        ):
            end = gallery[other].detach() if options.grad == "query" else gallery[other]
            d = listed_distance(embeddings[anchor], end, self.normalize)
            violation = sign * (d - boundary)
            members = ~(violation.detach() <= 0)  # NaN must reach the loss
            if options.positive == "easy" and sign > 0:
                members = members & (d.detach() == _row_extreme(d.detach(), anchor, rows, "amin")[anchor])
            eps = 0.0
            if options.eps_mode == "pml":
                members, eps = members & (d.detach() > 0), PML_EPS * gallery.shape[0]
            score = torch.where(members, temperature * violation, -torch.inf)
            score = score if options.weight_grad else score.detach()
            shift = _row_extreme(score.detach(), anchor, rows, "amax").clamp_min(-1e30)
            weight = (score - shift[anchor]).exp()
            denominator = weight.new_zeros(rows).index_add(0, anchor, weight) + eps * (-shift).exp()
            share = weight / torch.where(denominator > 0, denominator, 1)[anchor]
            term = torch.where(members, share * violation, 0)
            loss.append(term.new_zeros(rows).index_add(0, anchor, term))
            measured += [members.sum(), torch.where(members, d.detach(), 0).sum()]
        self.set_stats(measured[0], measured[2], measured[1], measured[3])
        total = options.pos_weight * loss[0] + options.neg_weight * loss[1]
        if self.reduction == "none":
            return total
        return total.sum() / (max(rows, 1) if self.reduction == "mean" else 1)


def _row_extreme(values: Tensor, row: Tensor, rows: int, kind: str) -> Tensor:
    """Largest ("amax") or smallest ("amin") value (rows,) of each row's entries."""
    start = values.new_full((rows,), -torch.inf if kind == "amax" else torch.inf)
    return start.scatter_reduce(0, row, values, kind)
