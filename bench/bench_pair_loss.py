"""The losses on row statistics beside the reference: pytest bench/bench_pair_loss.py --benchmark-only."""

from cases import Case
from timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{name}-{rows}x{width}", name, "dense", rows, width)
    for name in ("contrastive", "margin", "multi_similarity", "supcon", "circle", "lifted", "nca", "ntxent")
    for rows, width in ((512, 64), (2048, 128))
]
