"""Losses of the batch as a whole: those with proxies, and what they share with MCR²."""

from __future__ import annotations

import abc
import dataclasses

import torch
from torch import Tensor

from .. import _checks
from .._options import Configured, size


class BatchLoss(Configured, abc.ABC):
    """A loss of (embeddings, labels) that has no pairs to list, no gallery and nothing to exclude.

    Attributes:
        last_stats: detached () tensors of the last forward.
    """

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: None = None,
        ref_emb: None = None,
        ref_labels: None = None,
        *,
        ids: None = None,
        ref_ids: None = None,
    ) -> Tensor:
        """() loss of embeddings (M, D) and labels (M,), which are in [0, C) where there are proxies."""
        pairs = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels, "ids": ids}
        for name, value in {**pairs, "ref_ids": ref_ids}.items():
            if value is not None:
                _checks.fail(self.op, name, "None, since this loss is not one of pairs", type(value).__name__)
        return self.loss(embeddings, labels)

    @abc.abstractmethod
    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """() loss of the batch."""


@dataclasses.dataclass(eq=False, repr=False)
class ProxyLoss(BatchLoss):
    """A loss with rows of its own for each class, which have to be given to an optimiser."""

    num_classes: int = size()
    embedding_size: int = size()

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """Draw the parameters anew."""


def proxy_inputs(
    op: str, embeddings: object, labels: object, proxies: object, normalize: bool
) -> tuple[_checks.PairInputs, _checks.PairInputs]:
    """Embeddings (M, D) against proxies (C, D), checked, the class of each proxy being its row; and the other way."""
    x = _checks.matrix(op, "embeddings", embeddings)
    y = _checks.integers(op, "labels", labels, x, "M")
    p = _checks.matrix(op, "proxies", proxies, "(C, D)")
    _checks.same_width(op, x, p, "proxies", "(C, D)")
    classes = p.shape[0]
    _checks.some_class(op, y, classes)
    if x.dtype != p.dtype:
        common = torch.promote_types(x.dtype, p.dtype)
        x, p = x.to(common), p.to(common)
    options = (None, None, None, _checks.flag(op, "normalize", normalize))
    own = torch.arange(classes, device=p.device)
    return _checks.PairInputs(x, y, p, own, *options), _checks.PairInputs(p, own, x, y, *options)
