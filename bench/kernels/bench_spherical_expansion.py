"""spherical_expansion, fused beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"spherical_expansion-{kind}-{rows}x{width}", "spherical_expansion", kind, rows, width)
    for kind in ("dense", "sparse")
    for rows, width in ((512, 64), (2048, 128))
]
