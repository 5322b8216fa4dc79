"""nearest_positive and mine, fused beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{operation}-{kind}-{rows}x{width}", operation, kind, rows, width)
    for operation in ("nearest_positive", "mine_hard", "mine_semihard")
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
] + [Case("nearest_positive-gallery-128x4096x128", "nearest_positive", "dense", 128, 128, gallery=4096)]
