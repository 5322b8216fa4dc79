"""Triplet loss, all × all, beside the reference."""

from bench.kernels.cases import Case
from bench.kernels.timed import test_backward, test_forward  # noqa: F401

CASES = [Case(f"triplet_all-{kind}-256x64", "triplet_all", kind, 256, 64) for kind in ("dense", "sparse")]
