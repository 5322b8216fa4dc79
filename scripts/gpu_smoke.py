"""Every operation of the self-test, forward and backward, once: what `make gpu STAGE=sanitize` runs under each tool.

    python scripts/gpu_smoke.py cuda [native | triton]

Small, because the tools make kernels up to a hundred times slower; two tiles each way, so that a ragged edge is there.
"""

from __future__ import annotations

import sys

import torch

from dmlkernels import _backend, selfcheck

DTYPES = (torch.float32, torch.bfloat16)
ROWS = 180


def main() -> int:
    device, backend = (*sys.argv[1:], "native")[:2]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, selfcheck.WIDTH, generator=generator)
    labels = torch.randint(0, selfcheck.CLASSES, (ROWS,), generator=generator)
    with _backend.use_backend(backend):
        for case in selfcheck.CASES:
            for dtype in DTYPES:
                selfcheck._value_and_gradient(case, rows.to(device, dtype), labels.to(device))
    print(f"{len(selfcheck.CASES)} operations ran on {device}, by {backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
