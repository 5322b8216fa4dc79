"""coding_rate and cholesky, fused beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [
    Case(f"{operation}-{rows}x{width}", operation, "dense", rows, width)
    for operation in ("coding_rate", "class_coding_rate", "cholesky")
    for rows, width in ((512, 64), (2048, 128), (256, 512))
]
