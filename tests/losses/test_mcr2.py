"""MCR2Loss: the coding rate reduction as a loss."""

from __future__ import annotations

import pytest
import torch
from support.contract import assert_identical

from dmlkernels import functional as F
from dmlkernels import losses
from dmlkernels.testing import evaluate, make_pairs


def test_mcr2_loss(backend, device):
    pairs = make_pairs("random", 60, d=16, classes=6, seed=29, device=device)
    loss = losses.MCR2Loss(gain=1.5, rate_weight=0.7, eps_squared=0.3)

    def spelled(x):
        r = F.coding_rate(x, gain=1.5, eps_squared=0.3)
        return F.class_coding_rate(x, pairs.labels, eps_squared=0.3) - 0.7 * r

    own = evaluate(lambda x: loss(x, pairs.labels), [pairs.embeddings])
    assert_identical(own, evaluate(spelled, [pairs.embeddings]))
    default = losses.MCR2Loss()(*pairs[:2])
    torch.testing.assert_close(default, -F.coding_rate_reduction(*pairs[:2]))
    loss(pairs.embeddings.requires_grad_(), pairs.labels)
    assert set(loss.last_stats) == {"rate", "class_rate"}
    assert not any(v.requires_grad or v.ndim for v in loss.last_stats.values())
    with pytest.raises(ValueError, match="MCR2Loss: ref_emb must be None, since this loss is not one of pairs"):
        loss(*pairs[:2], ref_emb=pairs.embeddings)
    with pytest.raises(ValueError, match="MCR2Loss: rate_weight must be a positive number"):
        losses.MCR2Loss(rate_weight=0)
