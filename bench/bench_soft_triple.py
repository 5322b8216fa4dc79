"""soft_triple, fused beside the reference: pytest bench/bench_soft_triple.py --benchmark-only."""

from cases import Case
from timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"soft_triple-{kind}-{rows}x{width}", "soft_triple", kind, rows, width)
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
]
