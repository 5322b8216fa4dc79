"""proxy_anchor, fused beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"proxy_anchor-{kind}-{rows}x{width}", "proxy_anchor", kind, rows, width)
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
]
