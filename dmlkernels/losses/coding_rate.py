"""The MCR² loss."""

from __future__ import annotations

from torch import Tensor, nn

from .. import _checks
from ..ops.coding_rate import rate_options, reduction_terms
from ._base import refuse_pairs


class MCR2Loss(nn.Module):
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

    def __init__(
        self, gain: float = 1.0, rate_weight: float = 1.0, eps_squared: float = 0.5, normalize: bool = True
    ) -> None:
        super().__init__()
        self.options = rate_options("MCR2Loss", eps_squared, gain, normalize=normalize)
        self.rate_weight = _checks.positive("MCR2Loss", "rate_weight", rate_weight)
        self.last_stats: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        o = self.options
        return f"gain={o.gain}, rate_weight={self.rate_weight}, eps_squared={o.eps_squared}, normalize={o.normalize}"

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
        """() loss of embeddings (M, D) and labels (M,)."""
        pairs = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        refuse_pairs("MCR2Loss", **pairs, ids=ids, ref_ids=ref_ids)
        rate, class_rate = reduction_terms("MCR2Loss", embeddings, labels, self.options)
        self.last_stats = {"rate": rate.detach(), "class_rate": class_rate.detach()}
        return class_rate - self.rate_weight * rate
