"""Losses of pairs: where their pairs come from, the statistics of each query that they are formulae of, and the module.

A loss is finished the same way whether its statistics come from an operator (all pairs of the batch), from the nearest
positive of each query, or from the pairs that a miner lists.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import _backend, _checks
from .._options import Configured, flag, label
from ..ops.nearest_positive import NearestPositive, find_nearest
from ..ops.pair_loss import OneSide, Options, Side, Statistics, statistics
from ..reference.pair_loss import ByQuery, one_side, softplus
from ..reference.pairwise import apart, compute_dtype, root, rows

NO_LABEL = -(2**63)  # a label, or an id, that no row has


# What formulae share.


def some(log_sum: Tensor) -> Tensor:
    """Of which rows a log-sum-exp is one of something; a NaN is, for it must reach the loss."""
    return log_sum.detach() != -torch.inf


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


# The pairs.


@dataclasses.dataclass
class Pairs:
    """The pairs of one call: all of the batch, its negatives and nearest positives, or those that are listed."""

    op: str
    inputs: _checks.PairInputs
    positive: str  # of which queries the nearest positive alone takes part: all | easy
    check_finite: bool = False
    indices_tuple: object = None
    distinct: bool = True  # a listed pair counts once, however often it is listed
    _nearest: NearestPositive | None = None

    def statistics(
        self, value: str, pos: Side | None, neg: Side | None, bounds: Tensor | None = None, **more: Any
    ) -> Statistics:
        """The statistics of each query, as `ops.pair_loss.statistics` has them, of these pairs.

        Args:
            value: similarity | distance | squared.
            pos, neg: None: the side does not take part.
            bounds: (2, M), as of the operator.
            **more: the other fields of `ops.pair_loss.Options`.
        """
        options = Options(value, pos, neg, **more)
        if self.indices_tuple is not None:
            _checks.pair_namespace(self.op, self.inputs, self.check_finite)
            return self._of_listed(options, bounds)
        if self.positive == "easy" and pos is not None:
            return self._of_nearest(options, pos, bounds)
        return statistics(self.op, self.inputs, options, bounds, self.check_finite)

    def gallery(self) -> Tensor:
        return self.inputs.embeddings if self.inputs.ref_emb is None else self.inputs.ref_emb

    def nearest(self) -> NearestPositive:
        """Of the batch, found once."""
        if self._nearest is None:
            self._nearest = find_nearest(self.op, self.inputs, self.check_finite)
        return self._nearest

    def queries(self) -> Tensor:
        """() how many there are, without those that ignore_index takes out (lists name their queries)."""
        return self._kept(self.inputs.labels)

    def gallery_rows(self) -> Tensor:
        """() how many there are, likewise."""
        return self._kept(self.inputs.labels if self.inputs.ref_labels is None else self.inputs.ref_labels)

    def _kept(self, labels: Tensor) -> Tensor:
        ignored = self.inputs.ignore_index
        if ignored is None or self.indices_tuple is not None:
            return torch.full((), labels.shape[0], device=labels.device)
        return (labels != ignored).sum()

    def _of_nearest(self, options: Options, pos: Side, bounds: Tensor | None) -> Statistics:
        v, index = self.nearest()
        present = (index >= 0) | v.isnan()
        if options.value != "distance" or options.grad == "query":
            gallery = self.gallery().detach() if options.grad == "query" else self.gallery()
            query = torch.where((index >= 0)[:, None], self.inputs.embeddings, 0)
            value = pair_values(query, rows_at(gallery, index), options.value, self.inputs.normalize)
            v = torch.where(v.isnan(), torch.nan, value)
        if options.apart:
            present = present & ~(v.detach() <= 0)
        by = Listed(torch.arange(len(index), device=index.device), len(index))
        found = one_side(torch.where(present, v, 0), present, by, pos, _of(bounds, 0), options.weight_grad)
        if options.neg is None:
            return Statistics.of(found, no_statistics(v, len(index)))
        negatives = statistics(self.op, self.inputs, options._replace(pos=None), bounds, self.check_finite)
        return Statistics.of(found, negatives.negatives())

    def _of_listed(self, options: Options, bounds: Tensor | None) -> Statistics:
        """Memory in the length of the list. With easy positives the nearest of each query's listed ones takes part."""
        x, gallery, normalize = self.inputs.embeddings, self.gallery(), self.inputs.normalize
        lists = listed_pairs if self.distinct else every_listed_pair
        a1, p, a2, n = lists(self.op, self.indices_tuple, len(x), len(gallery))
        if self.positive == "easy" and options.pos is not None:
            with torch.no_grad():
                distance = pair_values(x[a1], gallery[p], "distance", normalize)
                place = first_nearest(distance, a1, p, len(x))
            a1, p = a1[place], p[place]
        end = gallery.detach() if options.grad == "query" else gallery
        sides = []
        for k, (side, anchor, other) in enumerate(((options.pos, a1, p), (options.neg, a2, n))):
            if side is None:
                sides.append(no_statistics(x.new_zeros(0, dtype=compute_dtype(x.dtype)), len(x)))
                continue
            v = pair_values(x[anchor], end[other], options.value, normalize)
            # Listed pairs have no exclusions but these; a NaN is kept, and reaches the loss.
            present = ~(v.detach() <= 0) if options.apart else torch.ones_like(v, dtype=torch.bool)
            by = Listed(anchor, len(x))
            sides.append(one_side(v, present, by, side, _of(bounds, k), options.weight_grad))
        return Statistics.of(*sides)


def _of(bounds: Tensor | None, side: int) -> Tensor | None:
    return None if bounds is None else bounds[side]


# The statistics of pairs whose values are at hand.


class Listed(ByQuery):
    """Values (L,), of which row (L,) are the queries, of so many."""

    def __init__(self, row: Tensor, count: int):
        self.row, self.count = row, count

    def spread(self, of_queries: Tensor) -> Tensor:
        return of_queries[self.row]

    def total(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        values = values.to(dtype or values.dtype)
        return values.new_zeros(self.count).index_add(0, self.row, values)

    def largest(self, values: Tensor) -> Tensor:
        return values.new_full((self.count,), -torch.inf).scatter_reduce(0, self.row, values, "amax")


def no_statistics(like: Tensor, count: int) -> OneSide:
    """Of a side that does not take part."""
    none = torch.zeros(0, dtype=torch.int64, device=like.device)
    return one_side(like[:0], none.bool(), Listed(none, count), Side("hinge", 1.0))


def first_nearest(distance: Tensor, anchor: Tensor, other: Tensor, count: int) -> Tensor:
    """Places in the list of each anchor's smallest distance; of equals, that of the lowest other row."""
    smallest = -Listed(anchor, count).largest(-distance)[anchor]
    # The smallest of a NaN and others is NaN, which equals nothing, and its place must reach the loss.
    nearest = (distance == smallest) | distance.isnan()
    length, last = len(anchor), torch.iinfo(torch.int64).max
    order = other * length + torch.arange(length, device=anchor.device)
    first = torch.full((count,), last, device=anchor.device)
    first = first.scatter_reduce(0, anchor, torch.where(nearest, order, last), "amin")
    return first[first < last] % max(length, 1)


def pair_values(left: Tensor, right: Tensor, value: str, normalize: bool) -> Tensor:
    """Value (L,) of pairs of rows of left and right (L, D), distances in difference form; NaN for an infinite one."""
    f, g = rows(left, normalize), rows(right, normalize)
    v = (f * g).sum(1) if value == "similarity" else (f - g).square().sum(1)
    if value == "distance":
        v = root(v, apart(v, f.detach().square().sum(1) + g.detach().square().sum(1)))
    return torch.where(v.detach().isfinite(), v, torch.nan)


def rows_at(gallery: Tensor, index: Tensor) -> Tensor:
    """(L, D) rows at index (L,), zeros for -1: what is not chosen may be NaN, and must not reach a gradient."""
    if gallery.shape[0] == 0:
        return gallery.new_zeros(index.shape[0], gallery.shape[1])
    return torch.where((index >= 0)[:, None], gallery[index.clamp_min(0)], 0)


# Distances of sampled pairs (M, S), whose memory does not grow with S·D.


def _difference(f: Tensor, g: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """f − g at index (M, D), its squared length (M,), and whether it has a direction; of one column of pairs."""
    chosen = g[index.clamp_min(0)]
    between = f - chosen
    squared = between.square().sum(1)
    return between, squared, (index >= 0) & apart(squared, f.square().sum(1) + chosen.square().sum(1))


def _distances(f: Tensor, g: Tensor, index: Tensor) -> Tensor:
    """(M, S), without a gradient where two rows coincide."""
    distances = []
    for column in index.unbind(1):
        _, squared, directed = _difference(f, g, column)
        distances.append(root(squared, directed))
    return torch.where(index >= 0, torch.stack(distances, 1), 0)


class _SampledDistance(torch.autograd.Function):
    """One column of pairs at a time, again in the backward, which is differentiable. Without g the gallery is f."""

    generate_vmap_rule = True

    @staticmethod
    def forward(f: Tensor, g: Tensor | None, index: Tensor) -> Tensor:
        return _distances(f, f if g is None else g, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        f, own, index = ctx.saved_tensors
        g = f if own is None else own
        grad_f, grad_g = torch.zeros_like(f), torch.zeros_like(g)
        for column, incoming in zip(index.unbind(1), grad.unbind(1)):
            between, squared, directed = _difference(f, g, column)
            # The square root is of what has a slope, or the second derivative of a coincident pair would be NaN.
            weight = torch.where(directed, incoming / torch.where(directed, squared, 1).sqrt(), 0)
            pull = torch.where(directed[:, None], weight[:, None] * between, 0)
            grad_f = grad_f + pull  # not in place: of a batch of gradients
            grad_g = grad_g.index_add(0, column.clamp_min(0), pull, alpha=-1)
        return (grad_f + grad_g, None, None) if own is None else (grad_f, grad_g, None)


def sampled_distance(inputs: _checks.PairInputs, index: Tensor) -> Tensor:
    """Distance (M, S) of each query to the gallery rows at index (M, S); 0 for −1."""
    x, labels, y, ref_labels, _, _, ignore_index, normalize = inputs
    if ignore_index is not None:
        # What is ignored may be NaN, and must not reach a gradient.
        x = torch.where((labels != ignore_index)[:, None], x, 0)
        if y is not None and ref_labels is not None:
            y = torch.where((ref_labels != ignore_index)[:, None], y, 0)
    f = rows(x, normalize)
    g = None if y is None else rows(y, normalize)
    if index.numel() == 0 or (g is not None and g.shape[0] == 0):
        return f.new_zeros(index.shape)
    if _backend.namespace("margin_loss", f.device) is None:
        return _distances(f, f if g is None else g, index)  # has every mode of differentiation
    return _SampledDistance.apply(f, g, index)


# What a miner lists.


def _check(op: str, indices_tuple: object, rows: int, columns: int, wait: bool = False) -> tuple[Tensor, ...]:
    """The lists as int64. On a GPU that is not waited for, and in a graph, numbers pass that are of no row."""
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        _checks.fail(
            op, "indices_tuple", "(anchors, positives, negatives) or (a1, positives, a2, negatives)", indices_tuple
        )
    assert isinstance(indices_tuple, (tuple, list))
    whole_numbers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    for listed in indices_tuple:
        if not isinstance(listed, Tensor) or listed.ndim != 1 or listed.dtype not in whole_numbers:
            got = f"{listed.dtype} {tuple(listed.shape)}" if isinstance(listed, Tensor) else type(listed).__name__
            _checks.fail(op, "indices_tuple", "of 1-dimensional integer tensors", got)
    lengths = [len(listed) for listed in indices_tuple]
    if lengths[0] != lengths[1] or lengths[-2] != lengths[-1]:
        _checks.fail(op, "indices_tuple", "of lists as long as those of their anchors", f"lengths {lengths}")
    sizes = (rows, columns, columns) if len(lengths) == 3 else (rows, columns, rows, columns)
    for listed, size in zip(indices_tuple, sizes):
        if len(listed) == 0 or not (_checks.readable(listed) or (wait and not torch.compiler.is_compiling())):
            continue
        low, high = (int(v) for v in listed.aminmax())
        if low < 0 or high >= size:
            _checks.fail(op, "indices_tuple", f"of rows in [0, {size})", low if low < 0 else high)
    return tuple(listed.to(torch.int64) for listed in indices_tuple)


def every_listed_pair(
    op: str, indices_tuple: object, rows: int, columns: int, wait: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1, p, a2, n) as they are listed, of so many rows and of so many in the gallery."""
    listed = _check(op, indices_tuple, rows, columns, wait)
    return listed if len(listed) == 4 else (listed[0], listed[1], listed[0], listed[2])


def listed_pairs(op: str, indices_tuple: object, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a1, p, a2, n) as two sets: a pair that several triplets share counts once."""
    # A GPU is waited for anyway, for the length of the sets; a row that is none would name another pair.
    a1, p, a2, n = every_listed_pair(op, indices_tuple, rows, columns, wait=True)
    ends = []
    for anchor, other in ((a1, p), (a2, n)):
        key = torch.unique(anchor * columns + other)
        ends += [torch.div(key, columns, rounding_mode="floor"), key % columns]
    return ends[0], ends[1], ends[2], ends[3]


def listed_triplets(op: str, indices_tuple: object, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a, p, n); from lists of pairs, every positive of an anchor with every negative of it."""
    listed = _check(op, indices_tuple, rows, columns)
    if len(listed) == 3:
        return listed[0], listed[1], listed[2]
    a1, p, a2, n = listed
    order = torch.argsort(a2, stable=True)
    a2, n = a2[order].contiguous(), n[order]
    first = torch.searchsorted(a2, a1.contiguous())
    count = torch.searchsorted(a2, a1.contiguous(), right=True) - first
    pair = torch.repeat_interleave(torch.arange(len(a1), device=a1.device), count)
    start = torch.repeat_interleave(first - count.cumsum(0) + count, count)
    return a1[pair], p[pair], n[start + torch.arange(len(pair), device=a1.device)]


# The function and the module of a loss.


@dataclasses.dataclass(eq=False, repr=False, kw_only=True)
class PairSettings(abc.ABC):
    """The options of a loss of pairs, and its formula. A subclass adds its own options, and `positive` among them.

    Args:
        normalize: L2-normalise the rows.
        ignore_index: rows of this label take no part.
        check_finite: raise for NaN or Inf; by default they make the loss NaN.
    """

    op = ""  # the public function, for errors
    value = "similarity"  # what the module's `last_stats` gives means of
    distinct = True  # a listed pair counts once, however often it is listed

    normalize: bool = flag(True)
    ignore_index: int | None = label()
    check_finite: bool = flag(False)

    @abc.abstractmethod
    def loss(self, pairs: Pairs) -> tuple[Tensor, Any]:
        """The loss, and what `watched` reads."""

    def watched(self, found: Any) -> dict[str, Tensor]:
        """What people watch in training: counts and mean values of the pairs that took part."""
        pos, neg = found.pos_slope.sum(), found.neg_slope.sum()
        return {
            "active_positives": pos,
            "active_negatives": neg,
            f"mean_pos_{self.value}": mean(found.pos_sum, pos),
            f"mean_neg_{self.value}": mean(found.neg_sum, neg),
        }

    def of(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        ids: Tensor | None,
        ref_ids: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """`loss` of the arguments of a function or of a forward."""
        gallery = (ref_emb, ref_labels, ids, ref_ids)
        inputs = _checks.pair_inputs(self.op, embeddings, labels, *gallery, self.ignore_index, self.normalize)
        positive = getattr(self, "positive", "all")
        return self.loss(Pairs(self.op, inputs, positive, self.check_finite, indices_tuple, self.distinct))


class PairLoss(PairSettings, Configured):
    """A loss of (embeddings, labels), optionally against a gallery (ref_emb, ref_labels).

    Attributes:
        last_stats: what people watch in training, from the last forward: a dict of detached () tensors, which costs no
            synchronisation until it is read.
    """

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
        loss, found = self.of(embeddings, labels, indices_tuple, ref_emb, ref_labels, ids, ref_ids)
        with torch.no_grad():
            self.last_stats = self.watched(found)
        return loss


# What goes around a loss.


def call_loss(loss: nn.Module, embeddings: Tensor, labels: Tensor, **arguments: Any) -> Tensor:
    """Call any loss, pytorch-metric-learning's included, with those of the arguments that were given."""
    return loss(embeddings, labels, **{name: value for name, value in arguments.items() if value is not None})


@contextlib.contextmanager
def ignoring(loss: Any) -> Iterator[int | None]:
    """The label that the loss ignores inside the block: its own, or one that no class has; None if it cannot ignore."""
    own = getattr(loss, "ignore_index", None)
    if own is not None or not hasattr(loss, "ignore_index"):
        yield own
        return
    loss.ignore_index = NO_LABEL
    try:
        yield NO_LABEL
    finally:
        loss.ignore_index = None
