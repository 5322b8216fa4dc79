"""The mining of the multi-similarity loss: extremes of similarities, of unit rows and of others."""

from __future__ import annotations

import pytest
import torch
from support.logsumexp_cases import CASES, MINED, bound_to, check_brute_force
from support.pairs import tensors

from dmlkernels import _checks, losses
from dmlkernels.losses._pairs import Pairs
from dmlkernels.testing import assert_matches, make_pairs


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("kind", ["zero_rows", "duplicates", "orthogonal"])
@pytest.mark.parametrize("name", MINED)
def test_mining_is_by_similarity(backend, device, name, kind, normalize):
    """A zero row is far from its positives and yet of similarity 0; a copy of an anchor is no boundary case."""
    pairs = make_pairs(kind, 14, 13, 5, 4, torch.float64, seed=3, device=device)
    check_brute_force(CASES[name], pairs, normalize=normalize)


@pytest.mark.parametrize("lowest", [-8, 1], ids=["either_sign", "positive"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_extremes(backend, device, scale, lowest):
    """The extremes are those of the similarities but for the last bits, whatever their size and sign."""
    for dtype in (torch.float32, torch.float64):
        x = (torch.randint(lowest, 9, (20, 6), generator=torch.Generator().manual_seed(0)) * scale).to(device, dtype)
        labels = torch.arange(20, device=device) % 4
        inputs = _checks.pair_inputs("test", x, labels, normalize=False)
        settings = losses.MultiSimilarityLoss()
        below, above = settings.bounds(Pairs("test", inputs, "all"), epsilon=0.0)
        s = x @ x.T
        same = labels[:, None] == labels
        own = torch.eye(20, dtype=torch.bool, device=device)
        eps = torch.finfo(dtype).eps * float(s.abs().max())
        torch.testing.assert_close(below, torch.where(same, -torch.inf, s).amax(1), rtol=0, atol=4 * eps)
        torch.testing.assert_close(above, torch.where(~same | own, torch.inf, s).amin(1), rtol=0, atol=4 * eps)


def test_a_negative_as_near_as_the_positive_is_not_mined(backend, device):
    """Its similarity is the number that the margin begins at, to the last bit."""
    x = torch.tensor([[1.0, 1, 3, 7, 14], [14, 7, 3, 1, 1], [14, 7, 3, 1, 1]], device=device)  # of length 16: exact
    labels = torch.tensor([0, 0, 1], device=device)
    inputs = _checks.pair_inputs("test", x, labels)
    below, above = losses.MultiSimilarityLoss().bounds(Pairs("test", inputs, "all"), epsilon=0.0)
    assert float(below[0]) == float(above[0])


def test_mined_float32(kernel, device):
    """A margin of similarities that no pair is near: the same pairs are mined in both precisions."""
    pairs = make_pairs("clustered", 130, None, 16, dtype=torch.float32, seed=5, device=device)
    for name in MINED:
        function = bound_to(CASES[name], pairs, epsilon=0.6)
        assert_matches(function, tensors(pairs), scale=4.0, exponent=40.0, max_quiet=1.0)
