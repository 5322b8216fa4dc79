"""Spherical Embedding Expansion around any loss."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from .. import _checks
from .._options import Configured, flag, not_negative, number, whole
from ..ops.spherical_expansion import class_means, own_proxies, spherical_expansion
from ..reference.pairwise import rows
from ._pairs import call_loss, ignoring
from .coding_rate import MCR2Loss
from .cross_batch_memory import CrossBatchMemory
from .multi_head import MultiHead
from .soft_triple import SoftTripleLoss

RAMP = 200  # epochs after which the authors' schedule has reached its end


@dataclasses.dataclass(eq=False, repr=False)
class SphericalExpansionLoss(Configured):
    """base_loss + weight·base_loss(synthetics), with n synthetics of each of the samples nearest to their proxies.

    With a base loss that has `.proxies`, the synthetics are its embeddings, detached: they train the proxies only, as
    in the authors' code. `SoftTripleLoss` has several centers a class, which are trained likewise; the class means of
    the batch take the place of the proxies. With any other loss the synthetics, around the class means too, are the
    detached gallery of the batch, which is trained against them; a `CrossBatchMemory` does not remember them. An
    `AntiCollapseLoss` belongs outside, so that its rate counts once, and so does `MultiHead`.

    A sample that coincides with its proxy has no synthetics. Shapes may not depend on that, so a base loss with an
    `ignore_index` gets rows of that label (−2⁶³ where it is None, for the synthetics only); any other base loss gets
    copies of the sample, which is what its synthetics tend to as it nears the proxy.

    Args:
        base_loss: a loss of this package or of pytorch-metric-learning that returns ().
        n: synthetics of a sample; n + 1 ≤ D.
        weight: of the base loss of the synthetics.
        min_fraction, max_fraction: share of the batch that is expanded, at the start and at the end of the schedule
            that `set_epoch` moves along; until its first call it is max_fraction.
        differentiable: let the synthetics train the network too.

    Attributes:
        last_stats: those of the base loss on the batch, synthetic_loss, and expanded (samples that have synthetics).
        proxies: those of the base loss.

    Raises:
        ValueError: for a wrong option, and a base loss that has neither pairs nor proxies; in `forward` for n + 1 > D
            and for what the base loss refuses.

    Source:
        Le & Woo, "Spherical embedding expansion", PAKDD 2024; selection and schedule are those of the authors' code.

    Example:
        >>> loss = losses.SphericalExpansionLoss(losses.ProxyAnchorLoss(100, 64))
        >>> for epoch in range(60):
        ...     loss.set_epoch(epoch, 60)
        ...     loss(embeddings, labels).backward()
    """

    base_loss: nn.Module
    n: int = whole(8)
    weight: float = not_negative(0.2)
    min_fraction: float = number(0.0)
    max_fraction: float = number(0.4)
    differentiable: bool = flag(False)

    def __post_init__(self) -> None:
        self._check_fractions()
        base_loss = self.base_loss
        inside = [module for module in base_loss.modules() if module is not base_loss]
        if isinstance(base_loss, (MCR2Loss, MultiHead)) or any(isinstance(m, CrossBatchMemory) for m in inside):
            expected = "a loss of pairs (around their CrossBatchMemory, inside MultiHead) or with proxies"
            _checks.fail(self.op, "base_loss", expected, type(base_loss).__name__)
        self._left = 0.0  # of the way from min_fraction to max_fraction

    def _check_fractions(self) -> None:
        if not 0 <= self.min_fraction <= self.max_fraction <= 1:
            got = f"{self.min_fraction}, {self.max_fraction}"
            _checks.fail(self.op, "min_fraction, max_fraction", "0 <= min <= max <= 1", got)

    @property
    def fraction(self) -> float:
        """The share of the batch that is expanded now."""
        self._check_fractions()
        return self.max_fraction - (self.max_fraction - self.min_fraction) * self._left

    @property
    def proxies(self) -> Tensor:
        return self.base_loss.proxies  # type: ignore[return-value]

    def set_epoch(self, epoch: float, total: float) -> None:
        """Move along the schedule: epoch, counted from 0, of total. A run without epochs gives its progress of 1."""
        op = "SphericalExpansionLoss.set_epoch"
        epoch, total = _checks.number(op, "epoch", epoch), _checks.number(op, "total", total)
        if not (epoch >= 0 and total > 0):
            _checks.fail(op, "epoch, total", ">= 0 and > 0", f"{epoch:g}, {total:g}")
        progress = min(1.0, min(epoch, RAMP) / min(total, RAMP))
        self._left = (math.cos(math.pi * progress) + 1) / 2

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
        """() loss. Gallery, listed pairs and ids are the base loss's; synthetics have the id of their sample."""
        synthetic, expanded = self._synthetic_loss(embeddings, labels, ids)
        given = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        base = call_loss(self.base_loss, embeddings, labels, **given, ids=ids, ref_ids=ref_ids)
        stats = {"synthetic_loss": synthetic.detach(), "expanded": expanded}
        self.last_stats = {**getattr(self.base_loss, "last_stats", {}), **stats}
        return base + self.weight * synthetic

    def _synthetic_loss(self, embeddings: Tensor, labels: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Base loss of the synthetics, and how many samples have some."""
        op = self.op
        embeddings = _checks.matrix(op, "embeddings", embeddings)
        labels = _checks.integers(op, "labels", labels, embeddings, "M")
        proxies = getattr(self.base_loss, "proxies", None)
        count = round(len(labels) * self.fraction)
        if count == 0:
            return embeddings.new_zeros(()), labels.new_zeros(())
        index = _nearest_to_proxy(embeddings, labels, proxies, count)
        z, y, valid = spherical_expansion(
            embeddings, labels, proxies, n=self.n, differentiable=self.differentiable, index=index
        )
        # Synthetics are not remembered, and meet the batch only.
        loss = self.base_loss.loss if isinstance(self.base_loss, CrossBatchMemory) else self.base_loss
        with ignoring(loss) as ignored:
            if ignored is not None:
                y = torch.where(valid.repeat_interleave(self.n), y, ignored)
            if proxies is not None or isinstance(loss, SoftTripleLoss):
                return call_loss(loss, z, y), valid.sum()
            gallery = {"ref_emb": z, "ref_labels": y, "ids": ids}
            if ids is not None:
                gallery["ref_ids"] = ids[index].repeat_interleave(self.n)
            return call_loss(loss, embeddings, labels, **gallery), valid.sum()


@torch.no_grad()
def _nearest_to_proxy(embeddings: Tensor, labels: Tensor, proxies: Tensor | None, count: int) -> Tensor:
    """(count,) rows with the largest z·p; a class's only sample, which is its own mean, comes last."""
    if proxies is None:
        means, sizes = class_means(embeddings, labels)
        similarity = (rows(embeddings, True) * rows(means, True)).sum(1)
        similarity = torch.where(sizes > 1, similarity, -torch.inf)
    else:
        own = own_proxies("SphericalExpansionLoss", labels, proxies)
        similarity = (rows(embeddings, True) * rows(own, True)).sum(1)
    return similarity.argsort(descending=True, stable=True)[:count]
