"""Anti-Collapse: a coding rate beside any loss."""

from __future__ import annotations

import dataclasses
import math
import warnings

import torch
from torch import Tensor, nn

from .. import _checks
from .._options import Configured, above_zero, choice, flag, not_negative
from ..ops.coding_rate import RateOptions, rate_of, rate_options
from ..reference.coding_rate import rate_scale
from ..reference.pairwise import rows
from ._pairs import call_loss
from .multi_head import MultiHead

FORMS = ("neg_rate", "exp_neg_rate")
DEFAULT_WEIGHT = {"neg_rate": 1e-3, "exp_neg_rate": 1.0}

_underflow_was_told = False


def anti_collapse_loss(
    z: Tensor,
    *,
    form: str = "neg_rate",
    gain: float = 1.0,
    rate_weight: float = 1.0,
    eps_squared: float = 0.5,
    scale: str = "mcr2",
    normalize: bool = True,
) -> Tensor:
    """Anti-Collapse term φ(R) of features or proxies: −R, or exp(−rate_weight·R).

    It prevents collapse and cannot undo it: at exact collapse its gradient is radial, hence 0 after the normalisation.
    The exponential form vanishes for most sizes (R = 110 for 90 random rows of width 512); a warning says so once.

    Args:
        z: (M, D) floating.
        form: "neg_rate", or "exp_neg_rate" (the authors' code, with scale="official_proxy").
        gain: γ₁, the factor inside the logdet.
        rate_weight: γ₂, in "exp_neg_rate" only.
        eps_squared, scale, normalize: as in `coding_rate`.

    Returns:
        () term, float32 (float64 for float64).

    Raises:
        ValueError: for a wrong shape, dtype or option.

    Source:
        Jiang et al., "Anti-Collapse Loss for Deep Metric Learning Based on Coding Rate Metric", TMM 2024;
        the exponential form and the scale "official_proxy" are those of the authors' code.

    Example:
        >>> F.anti_collapse_loss(torch.eye(4))
        tensor(-2.1972)
    """
    op = "anti_collapse_loss"
    options = rate_options(op, eps_squared, gain, scale, normalize)
    _checks.one_of(op, "form", form, FORMS)
    rate_weight = _checks.positive(op, "rate_weight", rate_weight)
    rate = rate_of(op, _checks.matrix(op, "z", z), None, options)
    return _term(op, rate, form, rate_weight, tuple(z.shape), options)


def _term(op: str, rate: Tensor, form: str, rate_weight: float, shape: tuple, options: RateOptions) -> Tensor:
    """φ of the rate of rows of this shape."""
    if form == "neg_rate":
        return -rate
    if not torch.compiler.is_compiling():
        _tell_of_underflow(op, rate, rate_weight, shape, options)
    return (-rate_weight * rate).exp()


def _tell_of_underflow(op: str, rate: Tensor, rate_weight: float, shape: tuple, options: RateOptions) -> None:
    """Warn, once, that exp(−rate_weight·R) is 0; on a GPU, which is not waited for, that it may become so."""
    global _underflow_was_told
    if _underflow_was_told or 0 in shape:
        return
    if rate.device.type == "cpu":
        if not _checks.readable(rate):
            return
        value, verb = float(rate.detach()), "is"
    elif options.normalize:
        # Of unit rows, orthogonal ones have the largest rate.
        (n, width), side = shape, min(shape)
        a = rate_scale(n, width, options.eps_squared, options.gain, options.scale)
        value, verb = side / 2 * math.log1p(a * n / side), "can be as large as"
    else:
        return
    if not rate_weight * value > -math.log(torch.finfo(rate.dtype).tiny):
        return
    _underflow_was_told = True
    warnings.warn(
        f"{op}: exp(-rate_weight * rate) underflows and then has no gradient: the rate of these {shape} rows {verb} "
        f'{value:.0f}. Use form="neg_rate", or a smaller rate_weight',
        stacklevel=4,
    )


@dataclasses.dataclass(eq=False, repr=False)
class AntiCollapseLoss(Configured):
    """base_weight·base_loss + weight·φ(R) around any loss, with R the coding rate of features or proxies.

    Args:
        base_loss: a loss of this package or of pytorch-metric-learning.
        on: "features" (the embeddings, all of them, whatever the base loss ignores), "batch_proxies" (the proxies of
            the classes in the batch) or "all_proxies", of the base loss's `.proxies` (C, D); None: batch proxies if
            there are proxies, features otherwise.
        weight: of φ; None: 1e-3 for "neg_rate" (0.01 already ruins a run), 1 for "exp_neg_rate".
        base_weight: of the base loss. The published setting is 0.0035 or 0.01 with form="exp_neg_rate" and
            scale="official_proxy".
        form, gain, rate_weight, eps_squared, scale, normalize: as in `anti_collapse_loss`.

    Attributes:
        last_stats: those of the base loss, base_loss, and rate (R).
        proxies: those of the base loss.

    Raises:
        ValueError: for a wrong option, proxies that the base loss does not have, or `MultiHead`, which belongs outside.

    Source:
        Jiang et al., "Anti-Collapse Loss for Deep Metric Learning Based on Coding Rate Metric", TMM 2024.

    Example:
        >>> loss = losses.AntiCollapseLoss(losses.RankedListLoss())
        >>> loss(embeddings, labels).backward()
    """

    base_loss: nn.Module
    on: str | None = choice(None, "features", "batch_proxies", "all_proxies")
    weight: float | None = not_negative(None)
    base_weight: float = not_negative(1.0)
    _: dataclasses.KW_ONLY
    form: str = choice("neg_rate", *FORMS)
    gain: float = above_zero(1.0)
    rate_weight: float = above_zero(1.0)
    eps_squared: float = above_zero(0.5)
    scale: str = choice("mcr2", "mcr2", "official_proxy")
    normalize: bool = flag(True)

    def __post_init__(self) -> None:
        if isinstance(self.base_loss, MultiHead):
            expected = "a loss of one embedding (MultiHead belongs around this loss)"
            _checks.fail(self.op, "base_loss", expected, "MultiHead")
        if self.on is None:
            self.on = "batch_proxies" if self._has_proxies() else "features"
        self._check_rows()

    @property
    def proxies(self) -> Tensor:
        return self.base_loss.proxies  # type: ignore[return-value]

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
        """() loss; all arguments but the first two are the base loss's."""
        given = {"indices_tuple": indices_tuple, "ref_emb": ref_emb, "ref_labels": ref_labels}
        base = call_loss(self.base_loss, embeddings, labels, **given, ids=ids, ref_ids=ref_ids)
        rate, shape = self._rate(embeddings, labels)
        term = _term(self.op, rate, self.form, self.rate_weight, shape, self._options())
        stats = {"base_loss": base.detach(), "rate": rate.detach()}
        self.last_stats = {**getattr(self.base_loss, "last_stats", {}), **stats}
        weight = DEFAULT_WEIGHT[self.form] if self.weight is None else self.weight
        return self.base_weight * base + weight * term

    def _options(self) -> RateOptions:
        return rate_options(self.op, self.eps_squared, self.gain, self.scale, self.normalize)

    def _has_proxies(self) -> bool:
        return isinstance(getattr(self.base_loss, "proxies", None), Tensor)

    def _check_rows(self) -> None:
        if self.on != "features" and not self._has_proxies():
            _checks.fail(self.op, "on", "'features' for a base loss without proxies", repr(self.on))

    def _rate(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, tuple]:
        """R and the shape of the rows that it is of."""
        self._check_rows()
        if self.on == "batch_proxies":
            return self._rate_of_batch_proxies(labels)
        z = embeddings if self.on == "features" else self.proxies
        return rate_of(self.op, z, None, self._options()), tuple(z.shape)

    def _rate_of_batch_proxies(self, labels: Tensor) -> tuple[Tensor, tuple]:
        """Shapes may not depend on how many classes there are: rows of zeros, which add nothing to ZᵀZ, fill them up.

        The scale a of the rate does depend on the number of rows, and is corrected in their length.
        """
        proxies, options = self.proxies, self._options()._replace(normalize=False)
        classes, width = proxies.shape
        size = min(len(labels), classes)
        present = torch.zeros(classes, dtype=torch.bool, device=proxies.device)
        present = present.index_fill(0, labels.to(torch.int64).clamp(0, max(classes - 1, 0)), True)
        first = present.to(torch.int8).argsort(descending=True, stable=True)[:size]
        z = rows(proxies[first], self.normalize)
        share = present.sum().to(z.dtype) / max(size, 1)
        length = (share if self.scale == "official_proxy" else 1 / share).sqrt()
        z = torch.where(present[first, None], z * length, 0)
        return rate_of(self.op, z, None, options), (size, width)
