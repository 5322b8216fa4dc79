"""Fixtures of the benchmarks' tests."""

from support.jobs import npz  # noqa: F401 (a fixture)
