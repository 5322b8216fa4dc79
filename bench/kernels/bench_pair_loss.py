"""The losses on row statistics beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{name}-{rows}x{width}", name, "dense", rows, width)
    for name in ("contrastive", "margin", "multi_similarity", "supcon", "circle", "lifted", "nca", "ntxent")
    for rows, width in ((512, 64), (2048, 128))
]
