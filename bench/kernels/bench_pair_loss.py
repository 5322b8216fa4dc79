"""The losses on row statistics beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.pair_losses import LOSSES
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{name}-{rows}x{width}", name, "dense", rows, width)
    for name in LOSSES
    if not name.startswith("triplet")  # bench_triplet.py
    for rows, width in ((512, 64), (2048, 128))
]
