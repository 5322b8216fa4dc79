"""The check without which no time is taken: two contenders compute the same."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.kernels.batches import device
from bench.kernels.cases import Case
from bench.kernels.contenders import Taken

VALUE_TOLERANCE = 2e-5  # of a distance or a loss of unit rows, absolute
GRADIENT_TOLERANCE = 1e-4  # of a gradient row, relative to itself and to the mean row
# The D × D determinants of the MCR² loop lose 2e-4 to rounding where the Gram matrix of the class's rows loses 4e-7.
ROUGH = {"mcr2_loop": 4e-4}
EITHER_SIDE = 5e-3  # share of rows with a pair so near a boundary that rounding decides on which side it falls
SWITCHED = 0.03  # share of rows for which rounding may change what is chosen, or that are chosen by one side only
TIE = 2e-6  # distances of unit rows that rounding may put in either order


def _switched(case: Case, ours: Taken, theirs: Taken) -> Tensor:
    """(M,) bool: queries that chose differently, and the rows that they chose."""
    switched = torch.zeros(case.rows, dtype=torch.bool, device=device())
    for ours_out, theirs_out in zip(ours.outputs, theirs.outputs):
        if ours_out.is_floating_point():
            continue
        differ = ours_out != theirs_out
        switched |= differ
        if not case.gallery:
            chosen = torch.cat([ours_out[differ], theirs_out[differ]])
            switched[chosen[chosen >= 0]] = True
    return switched


def assert_agree(case: Case, name: str, ours: Taken, theirs: Taken) -> None:
    """Values and gradients of two contenders in float32 differ by rounding only."""
    where = f"{case.name} {case.rows}×{case.columns}×{case.width}: fused and {name}"
    switched = _switched(case, ours, theirs)
    count = int(switched.sum())
    assert count <= min(0.5, SWITCHED * case.coarse) * case.rows, f"{where} disagree in the choices around {count} rows"
    for k, (ours_out, theirs_out) in enumerate(zip(ours.outputs, theirs.outputs)):
        if not ours_out.is_floating_point():
            continue
        # Infinity (nothing to select) equals infinity; NaN is never close.
        allowed = VALUE_TOLERANCE * case.coarse
        close = torch.isclose(ours_out.double(), theirs_out.double(), rtol=allowed, atol=allowed)
        if case.operation == "mine_semihard" and k == 1:
            # Semi-hard is strictly farther than the positive: one as far as it is chosen by one side and not the other.
            close |= switched & ((torch.minimum(ours_out, theirs_out) - ours.outputs[0]).abs() <= TIE)
        assert bool(close.all()), f"{where} disagree in {int((~close).sum())} values"
    assert ours.grad is not None
    assert theirs.grad is not None
    size = torch.linalg.vector_norm(theirs.grad.float(), dim=1)
    error = torch.linalg.vector_norm(ours.grad.float() - theirs.grad.float(), dim=1)
    assert float(size.mean()) > 0, f"{where}: no gradient"
    tolerance = ROUGH.get(name, GRADIENT_TOLERANCE) * case.coarse
    lost = (ours.grad == 0).all(1) & (size > tolerance * size.mean()) & ~switched
    assert not bool(lost.any()), f"{where} disagree: {int(lost.sum())} gradient rows are zero"
    wrong = ~(error <= tolerance * (size + size.mean())) & ~switched
    count = int(wrong.sum())
    assert count <= min(0.5, EITHER_SIDE * case.coarse) * case.rows, (
        f"{where} disagree in {count} gradient rows, by up to {error.max():.1e}"
    )
