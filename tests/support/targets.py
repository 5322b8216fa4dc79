"""Where a test can run: the backends, and the devices they are tested on."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch

from dmlkernels import _backend, _triton


class Target(NamedTuple):
    name: str
    device: str
    emulated: bool = False  # a thousand times slower than the real thing: tests marked `large` are not for it
    cases: int = 0  # of a test that the default tier runs at most if it is emulated (tiers.py)
    pairs: int = 0  # cases of a test up to which pairs of values are added to single ones

    @property
    def asynchronous(self) -> bool:
        """Nobody waits for its kernels, so that they cannot raise for what is in a tensor."""
        return self.device == "cuda" or self.name in ("cuda-host", "cuda-ptx")

    @property
    def product_rounding(self) -> float:
        """By how much distances may change with the place of a pair: Triton's interpreter has numpy multiply."""
        return 1e-6 if self.name == "triton" and self.emulated else 0.0

    @property
    def operators(self) -> Any:
        """The namespace torch.ops.<...> of this backend."""
        return getattr(torch.ops, _backend.namespaces[self.name])


# Backends with kernels, and the device type of the tensors they are tested on: one line each.
KERNELS = [
    Target("native", "cpu", pairs=8),
    *([Target("native", "cuda", pairs=8)] if torch.cuda.is_available() else []),
    Target("triton", "cpu", emulated=True, cases=1) if _triton.interpreted() else Target("triton", "cuda"),
    Target("cuda-host", "cpu", emulated=True, cases=3, pairs=4),
    # By hand: tests/ptx runs a call of every kernel.
    *([Target("cuda-ptx", "cpu", emulated=True, cases=1)] if os.environ.get("DMLKERNELS_PTX") == "1" else []),
]
