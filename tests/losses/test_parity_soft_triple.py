"""SoftTripleLoss against pytorch-metric-learning's: value, gradients of embeddings and centers, and the start."""

from __future__ import annotations

import pytest
import torch
from support.peer import assert_same

from dmlkernels import losses
from dmlkernels.testing import make_pairs

theirs = pytest.importorskip("pytorch_metric_learning.losses")

# (embeddings, classes, centers of a class, width)
SIZES = [(60, 12, 10, 16), (20, 50, 3, 8), (140, 150, 1, 12), (30, 5, 64, 9), (1, 4, 10, 7)]
OPTIONS = {
    "default": {},
    "soft": {"la": 4, "gamma": 1.0, "margin": 0.3},
    "sharp": {"la": 60, "gamma": 0.02, "margin": 0.0},
    "negative_margin": {"la": 10, "gamma": 0.2, "margin": -0.2},
}


def both(m, c, k, d, options, kind="random", normalize=True):
    """Our module and theirs, with the same centers, and a batch."""
    torch.manual_seed(m + c)
    ours = losses.SoftTripleLoss(c, d, centers_per_class=k, normalize=normalize, **options).double()
    if not normalize:
        from pytorch_metric_learning.distances import DotProductSimilarity

        options = {**options, "distance": DotProductSimilarity(normalize_embeddings=False)}
    other = theirs.SoftTripleLoss(c, d, centers_per_class=k, **options).double()
    centers = torch.randn(c * k, d, dtype=torch.float64)
    ours.centers.data.copy_(centers)
    other.fc.data.copy_(centers.t())
    return ours, other, make_pairs(kind, m, d=d, classes=c, dtype=torch.float64, seed=c)


class Transposed:
    """Their module as a function of centers (C*K, D)."""

    def __init__(self, module):
        self.module = module
        self.centers = module.fc.detach().t().contiguous().requires_grad_()

    def __call__(self, x, labels):
        return torch.func.functional_call(self.module, {"fc": self.centers.t()}, (x, labels))


@pytest.mark.parametrize("kind", ["random", "clustered", "collapsed", "large_norms"])
@pytest.mark.parametrize("m, c, k, d", SIZES)
def test_sizes(backend, device, m, c, k, d, kind):
    ours, other, pairs = both(m, c, k, d, {}, kind)
    other = Transposed(other)
    assert_same(ours, other, pairs, parameters=[(ours.centers, other.centers)])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(backend, device, name, normalize):
    ours, other, pairs = both(40, 9, 4, 8, OPTIONS[name], normalize=normalize)
    other = Transposed(other)
    assert_same(ours, other, pairs, parameters=[(ours.centers, other.centers)])


def test_one_class(backend, device):
    ours, other, pairs = both(20, 1, 10, 8, {})
    other = Transposed(other)
    assert_same(ours, other, pairs, parameters=[(ours.centers, other.centers)], zero=True)


def test_defaults_and_start():
    """The same numbers from the same seed: kaiming_uniform_ of the transpose."""
    torch.manual_seed(0)
    ours = losses.SoftTripleLoss(30, 16)
    torch.manual_seed(0)
    other = theirs.SoftTripleLoss(30, 16)
    assert torch.equal(ours.centers, other.fc.t())
    assert (ours.la, ours.margin, ours.centers_per_class) == (other.la, other.margin, other.centers_per_class)
    assert 1 / ours.gamma == other.gamma  # theirs keeps what the similarities are multiplied by
