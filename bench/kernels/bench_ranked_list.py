"""Ranked List Loss, fused beside the reference."""

from bench.kernels.batches import SHARE
from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{kind}-{rows}x{width}", "ranked_list", kind, rows, width)
    for kind in SHARE
    for rows, width in ((512, 64), (2048, 128))
] + [Case("gallery-128x4096x128", "ranked_list", "dense", 128, 128, gallery=4096)]
