"""What spherical_expansion expands."""

from __future__ import annotations

import torch

from dmlkernels import functional as F
from dmlkernels.testing import make_pairs


class Problem:
    """Samples, labels, proxies of 5 classes, and the noise of their frames."""

    def __init__(self, m, d, n, dtype=torch.float64, seed=0, device="cpu", kind="random"):
        pairs = make_pairs(kind, m, d=d, classes=5, dtype=dtype, seed=seed, device=device)
        generator = torch.Generator().manual_seed(seed + 1)
        self.z, self.labels, self.n = pairs.embeddings, pairs.labels, n
        self.proxies = torch.randn(5, d, dtype=torch.float64, generator=generator).to(dtype).to(device)
        self.noise = torch.randn(m, n - 1, d, dtype=torch.float64, generator=generator).to(dtype).to(device)

    def expand(self, z=None, **options):
        options = {"n": self.n, "noise": self.noise, **options}
        return F.spherical_expansion(self.z if z is None else z, self.labels, self.proxies, **options)

    def function(self, **options):
        """The synthetics as a differentiable function of z."""
        return lambda z: self.expand(z, differentiable=True, **options).embeddings
