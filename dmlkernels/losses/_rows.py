"""Losses that are a formula on the row statistics of their pairs: where these come from, and what formulae share."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import _checks
from ..ops.nearest_positive import NearestPositive, find_nearest
from ..ops.pair_loss import Options, Statistics, statistics
from ._base import PairLoss
from ._listed_statistics import easy_statistics, listed_statistics


@dataclasses.dataclass
class Source:
    """The pairs of a loss: all of the batch, its negatives and nearest positives, or those that are listed."""

    op: str
    inputs: _checks.PairInputs
    positive: str  # all | easy
    check_finite: bool = False
    indices_tuple: object = None
    distinct: bool = True  # a listed pair counts once, however often it is listed
    _nearest: NearestPositive | None = None

    def nearest(self) -> NearestPositive:
        """Of the batch, found once."""
        if self._nearest is None:
            self._nearest = find_nearest(self.op, self.inputs, self.check_finite)
        return self._nearest

    def statistics(self, options: Options, bounds: Tensor | None = None) -> Statistics:
        """As `ops.pair_loss.statistics` has them, of these pairs."""
        if self.indices_tuple is not None:
            _checks.pair_namespace(self.op, self.inputs, self.check_finite)
            x, _, g, *_, normalize = self.inputs
            listed = (x, g, self.indices_tuple, options, bounds, normalize)
            return listed_statistics(self.op, *listed, positive=self.positive, distinct=self.distinct)
        if self.positive == "easy" and options.pos is not None:
            return easy_statistics(self.op, self.inputs, options, self.nearest(), bounds, self.check_finite)
        return statistics(self.op, self.inputs, options, bounds, self.check_finite)

    def rows(self) -> Tensor:
        """() how many queries there are, without those that ignore_index takes out (lists name their queries)."""
        labels, ignored = self.inputs.labels, self.inputs.ignore_index
        if ignored is None or self.indices_tuple is not None:
            return torch.full((), labels.shape[0], device=labels.device)
        return (labels != ignored).sum()

    def gallery_rows(self) -> Tensor:
        """() how many gallery rows there are, without those that ignore_index takes out (lists name their rows)."""
        _, labels, _, ref_labels, _, _, ignored, _ = self.inputs
        labels = labels if ref_labels is None else ref_labels
        if ignored is None or self.indices_tuple is not None:
            return torch.full((), labels.shape[0], device=labels.device)
        return (labels != ignored).sum()


def some(log_sum: Tensor) -> Tensor:
    """Of which rows a log-sum-exp is one of something; a NaN is, for it must reach the loss."""
    return log_sum.detach() != -torch.inf


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) of every x: PyTorch's is x itself above 20, or overflows."""
    return torch.logaddexp(x, torch.zeros_like(x))


def softmax_cost(stats: Statistics) -> tuple[Tensor, Tensor]:
    """−log e^{L_P}/(e^{L_P} + e^{L_N}) (M,) of the log-sum-exps, and which rows have positives; 0 of the others.

    As log(1 + e^{L_N − L_P}), which keeps its relative accuracy where the loss is small.
    """
    anchors = some(stats.pos)
    excess = stats.neg - torch.where(anchors, stats.pos, 0)
    return torch.where(anchors, softplus(excess), 0), anchors


def mean(terms: Tensor, count: Tensor) -> Tensor:
    """Sum of the terms over a count; 0 of none."""
    return terms.sum() / count.clamp_min(1)


def nonzero_mean(terms: Tensor) -> Tensor:
    """Mean over the terms above 0."""
    return mean(terms, (terms.detach() > 0).sum())


class Settings(Protocol):
    """The checked options of a loss, and its formula."""

    @property
    def positive(self) -> str: ...

    def loss(self, source: Source) -> tuple[Tensor, Statistics]:
        """() loss, and of each row how many pairs took part (slopes) and the sums of their values."""
        ...

    def _asdict(self) -> dict[str, Any]: ...


class RowLoss(PairLoss):
    """A loss made of row statistics; a subclass checks its options and says what its values are.

    Args:
        settings: options and formula.
        value: what `last_stats` gives means of.
        **options: normalize, ignore_index, check_finite.
    """

    distinct = True  # a listed pair counts once, however often it is listed

    def __init__(self, settings: Settings, value: str, **options: Any) -> None:
        super().__init__(**options)
        self.settings, self.value = settings, value

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
        """() loss; with `indices_tuple`, of the listed pairs only, whatever ids or ignore_index say."""
        name = type(self).__name__
        inputs = self.pair_inputs(name, embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
        source = Source(name, inputs, self.settings.positive, self.check_finite, indices_tuple, self.distinct)
        loss, stats = self.settings.loss(source)
        counts_and_sums = (stats.pos_slope, stats.neg_slope, stats.pos_sum, stats.neg_sum)
        self.set_stats(*(column.detach().sum() for column in counts_and_sums), value=self.value)
        return loss
