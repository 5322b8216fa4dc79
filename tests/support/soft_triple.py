"""A batch, its classes and their centers."""

from __future__ import annotations

import torch

from dmlkernels import functional as F
from dmlkernels.testing import make_pairs


class Problem:
    def __init__(self, m, c, k, d, dtype=torch.float32, seed=0, device="cpu", kind="random"):
        pairs = make_pairs(kind, m, d=d, classes=max(c, 1), dtype=dtype, seed=seed, device=device)
        self.embeddings, self.labels, self.per_class = pairs.embeddings, pairs.labels.clamp(max=max(c - 1, 0)), k
        generator = torch.Generator().manual_seed(seed + 1)
        self.centers = torch.randn(c * k, d, dtype=torch.float64, generator=generator).to(dtype).to(device)

    @property
    def tensors(self):
        return [self.embeddings, self.centers]

    def function(self, **options):
        return lambda x, w: F.soft_triple_loss(x, self.labels, w, centers_per_class=self.per_class, **options)
