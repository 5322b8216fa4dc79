"""A batch, its classes and their proxies."""

from __future__ import annotations

import torch

from dmlkernels import functional as F
from dmlkernels.testing import make_pairs


class Problem:
    def __init__(self, m, c, d, dtype=torch.float32, seed=0, device="cpu", kind="random", missing=False):
        """With `missing`, every third class has no embedding."""
        pairs = make_pairs(kind, m, d=d, classes=c, dtype=dtype, seed=seed, device=device)
        self.embeddings, self.labels = pairs.embeddings, pairs.labels.clamp(max=max(c - 1, 0))
        if missing:
            self.labels = self.labels - (self.labels % 3 == 2).long()
        generator = torch.Generator().manual_seed(seed + 1)
        self.proxies = torch.randn(c, d, dtype=torch.float64, generator=generator).to(dtype).to(device)

    @property
    def tensors(self):
        return [self.embeddings, self.proxies]

    def function(self, **options):
        return lambda x, p: F.proxy_anchor_loss(x, self.labels, p, **options)
