"""The coding rate of classes: against its formula, and classes of every size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.coding_rate import by_formula, match
from support.contract import FLOAT_IDS, FLOATS
from support.matrices import SMALL

from dmlkernels import functional as F
from dmlkernels.testing import INTEGER_DTYPES, LABEL_KINDS, evaluate, make_labels, make_pairs


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("labels", LABEL_KINDS)
@pytest.mark.parametrize("m, d", [(30, 4), (30, 11), (90, 8)])
def test_class_rate_against_the_formula(backend, device, m, d, labels, normalize):
    pairs = make_pairs("random", m, d=d, classes=7, labels=labels, dtype=torch.float64, seed=8, device=device)
    x, y = pairs.embeddings.cpu().numpy(), pairs.labels.cpu().numpy()
    expected, grad = 0.0, np.zeros_like(x)
    for label in np.unique(y):
        own = y == label
        part, part_grad = by_formula(x[own], d / (own.sum() * 0.4), normalize)
        expected += own.sum() / m * part
        grad[own] = own.sum() / m * part_grad
    outcome = evaluate(
        lambda x: F.class_coding_rate(x, pairs.labels, eps_squared=0.4, normalize=normalize),
        [pairs.embeddings],
        torch.ones((), device=device),
    )
    np.testing.assert_allclose(outcome.value.cpu(), expected, rtol=1e-12)
    np.testing.assert_allclose(outcome.grads[0].cpu(), grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("d", [5, 40])
@pytest.mark.parametrize("size", [1, 2, 4, 8, 15, 16, 17, SMALL, SMALL + 1, 60])
def test_class_sizes(kernel, device, size, d, dtype):
    """Classes of one size, the last one smaller; above the limit of the small kernel they are factored one by one."""
    pairs = make_pairs("random", 7 * size - size // 2, d=d, dtype=dtype, seed=14, device=device)
    match("class", pairs._replace(labels=torch.arange(len(pairs.labels), device=device) // size))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
def test_ragged_classes(kernel, device, dtype):
    """Sizes 1 to 40, large and small ones together in one batch, in random order."""
    labels = torch.cat([torch.full((n,), n) for n in (1, 40, 3, 2, 33, 32, 7, 1, 16, 5, 31)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pairs = make_pairs("random", len(labels), d=12, dtype=dtype, seed=15, device=device)
    match("class", pairs._replace(labels=labels[order].to(device)))


@pytest.mark.parametrize("dtype", FLOATS, ids=FLOAT_IDS)
@pytest.mark.parametrize("sizes", [(15, 16, 17, 18), (131, 2, 150), (140, 33, 5), (260, 1)], ids=str)
@pytest.mark.parametrize("d", [20, 140])
def test_large_classes(kernel, device, sizes, d, dtype):
    """Above 16 rows a class is a CUDA block's; a side above 128 is in global memory; rows may outnumber features."""
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate(sizes)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pairs = make_pairs("random", len(labels), d=d, dtype=dtype, seed=15, device=device)
    match("class", pairs._replace(labels=labels[order].to(device)))


@pytest.mark.parametrize("label_dtype", INTEGER_DTYPES, ids=lambda d: str(d)[6:])
def test_labels_are_names(backend, device, label_dtype):
    """Any integers, with gaps: classes without rows contribute nothing."""
    y = make_labels("shuffled", 50, 2 if label_dtype == torch.bool else 7, generator=torch.Generator().manual_seed(22))
    x = make_pairs("random", 50, d=9, dtype=torch.float64, device=device).embeddings
    spread = y if label_dtype == torch.bool else y * 11 - (30 if label_dtype.is_signed else 0)
    got = F.class_coding_rate(x, spread.to(label_dtype).to(device))
    torch.testing.assert_close(got, F.class_coding_rate(x, y.to(device)))
