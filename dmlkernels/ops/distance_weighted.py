"""distance_weighted: negatives drawn so that every distance is as likely as any other."""

from __future__ import annotations

from torch import Tensor

from .. import _backend, _checks, _library
from ..reference import distance_weighted as reference


def _check_uniforms(op: str, uniforms: object, like: Tensor) -> Tensor:
    """(M, S) floating in [0, 1), as float64. On a GPU, which is not waited for, and in a graph the values pass."""
    if not isinstance(uniforms, Tensor):
        _checks.fail(op, "uniforms", "a (M, S) tensor", type(uniforms).__name__)
    assert isinstance(uniforms, Tensor)
    _checks.floating(op, "uniforms", uniforms)
    if uniforms.ndim != 2 or uniforms.shape[0] != like.shape[0]:
        _checks.fail(op, "uniforms", f"(M, S) with M={like.shape[0]}", tuple(uniforms.shape))
    if uniforms.device != like.device:
        _checks.fail(op, "uniforms", f"on {like.device} like the embeddings", uniforms.device)
    # Exact: in float32 the largest float64 below 1 would become 1.
    u = uniforms.detach().double()
    if _checks.readable(u) and u.numel() > 0:
        outside = ~((u >= 0) & (u < 1))
        if bool(outside.any()):
            _checks.fail(op, "uniforms", "in [0, 1)", float(u[outside][0]))
    return u


def sample_negatives(
    op: str,
    inputs: _checks.PairInputs,
    uniforms: Tensor,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    check_finite: bool = False,
) -> Tensor:
    """Distance-weighted negatives of every query, at given uniforms: no gradient, and no N×M array.

    Args:
        op: the public function, for errors.
        inputs: checked pair arguments; M queries, N gallery rows.
        uniforms: (M, S) in [0, 1), floating. One draw each: the first row j, ascending, whose cumulative probability is
            above u. The value is not looked at on a GPU: there a u outside [0, 1) draws nothing.
        cutoff: distances below it count as this distance.
        nonzero_loss_cutoff: rows at this distance or farther are not drawn; at most 2.
        check_finite: raise for NaN or Inf.

    Returns:
        index (M, S) int64 rows of the gallery; −1 where there is no candidate. A query with a NaN or Inf draws nothing,
        and if the gallery has one, no query does: a loss takes its NaN from the distances of the positives.

    Raises:
        ValueError: for a wrong argument, or with `check_finite`.

    Source:
        Wu et al., "Sampling matters in deep embedding learning", ICCV 2017, section 4.

    Example:
        >>> inputs = _checks.pair_inputs("margin_loss", torch.randn(6, 4), torch.arange(6) // 2)
        >>> sample_negatives("margin_loss", inputs, torch.rand(6, 3)).shape
        torch.Size([6, 3])
    """
    far = _checks.positive(op, "nonzero_loss_cutoff", nonzero_loss_cutoff)
    if far > 2:
        _checks.fail(op, "nonzero_loss_cutoff", "at most 2, the largest distance of unit rows", repr(far))
    if _checks.positive(op, "cutoff", cutoff) >= far:
        _checks.fail(op, "cutoff", f"below nonzero_loss_cutoff={far}", repr(cutoff))
    u = _check_uniforms(op, uniforms, inputs.embeddings)
    namespace = _checks.pair_namespace(op, inputs, check_finite)
    if namespace is None:
        return reference.sample_negatives(inputs, u, float(cutoff), far)
    detached = inputs._replace(
        embeddings=inputs.embeddings.detach(), ref_emb=None if inputs.ref_emb is None else inputs.ref_emb.detach()
    )
    forward = _library.forward(namespace, "distance_weighted")
    return forward(*detached, u, float(cutoff), far, _backend.get_float32_precision(), check_finite)
