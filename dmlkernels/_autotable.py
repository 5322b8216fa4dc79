"""Which of native and Triton is faster, by device: measured, committed, never searched for at run time.

Device name, as torch gives it -> public function -> "native" or "triton". What is not listed goes to native where its
kernels are loaded. Empty until the benchmarks of both have run on a GPU.
"""

from __future__ import annotations

FASTEST: dict[str, dict[str, str]] = {}
