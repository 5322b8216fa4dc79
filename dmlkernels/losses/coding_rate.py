"""The MCR² loss."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .._options import above_zero, flag
from ..ops.coding_rate import rate_options, reduction_terms
from ._proxies import BatchLoss


@dataclasses.dataclass(eq=False, repr=False)
class MCR2Loss(BatchLoss):
    """Maximal coding rate reduction as a loss: R_c − rate_weight·R(gain).

    Args:
        gain: γ₁, the factor inside the logdet of R.
        rate_weight: γ₂.
        eps_squared: ε² ("eps" in the released codes).
        normalize: L2-normalise the rows.

    Attributes:
        last_stats: rate and class_rate of the last forward, detached.

    Raises:
        ValueError: for an option that is not positive; in `forward` for a wrong shape, dtype or device, and for a
            gallery, listed pairs or ids.

    Source:
        Yu et al., "Learning diverse and discriminative representations via the principle of maximal coding rate
        reduction", NeurIPS 2020, §2.2.

    Example:
        >>> loss = losses.MCR2Loss()
        >>> loss(embeddings, labels).backward()
    """

    gain: float = above_zero(1.0)
    rate_weight: float = above_zero(1.0)
    eps_squared: float = above_zero(0.5)
    normalize: bool = flag(True)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        options = rate_options(self.op, self.eps_squared, self.gain, normalize=self.normalize)
        rate, class_rate = reduction_terms(self.op, embeddings, labels, options)
        self.last_stats = {"rate": rate.detach(), "class_rate": class_rate.detach()}
        return class_rate - self.rate_weight * rate
