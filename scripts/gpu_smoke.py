"""Every smoke call of tests/cuda_host on a device, forward and backward, against float64.

    python -m scripts.gpu_smoke DEVICE BACKEND [--part K/N] [--only-run] [--kernels FILE]

Beside the calls, whose sizes fill no tile, losses at sizes of the schedule with atomics, and distances at widths where
a product sums up much. --part runs each N-th of all from the K-th on, for several processes. --only-run compares
nothing and leaves these sizes out: a sanitizer makes kernels a hundred times slower. --kernels keeps which kernels ran.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from cuda_host import smoke

from dmlkernels import functional as F
from dmlkernels import use_backend
from dmlkernels.selfcheck import TOLERANCE, relative_error
from dmlkernels.testing import assert_matches, make_pairs

MIRRORED = (4097, 4224, 4480, 8192)  # a ragged last tile, an odd number of tiles twice, an even one
WIDE = (512, 2048)
Run = Callable[[], str]  # what to print; AssertionError where the numbers are wrong


def compared(name: str, dtype: torch.dtype, device: str) -> str:
    """Value and gradients, relative to the largest entry of each."""
    got = smoke.run(name, dtype, device)
    with use_backend("reference"):
        truth = smoke.run(name, dtype, device, exact=True)
    both = zip((got.value, *got.grads), (truth.value, *truth.grads), strict=True)
    errors = [relative_error(found.double(), expected) for found, expected in both]
    said = "  ".join(f"{error:.1e}" for error in errors)
    assert all(error <= TOLERANCE[dtype] for error in errors), f"errors {said}, allowed {TOLERANCE[dtype]:.0e}"
    return said


def mirrored(rows: int, dtype: torch.dtype, device: str) -> str:
    """Each pair once, both gradients of it at once, sums by atomic additions."""
    x, labels, _, _ = make_pairs("random", rows, d=64, classes=rows // 8, dtype=dtype, device=device)
    assert_matches(lambda x: F.contrastive_loss(x, labels, metric="cosine", neg_margin=0.2, reduction="none"), (x,))
    return "within the tolerance"


def wide(width: int, dtype: torch.dtype, device: str) -> str:
    """Tight clusters, in which the distances cancel."""
    x = make_pairs("clustered", 200, d=width, dtype=dtype, device=device).embeddings
    assert_matches(partial(F.pairwise_distance, normalize=True), (x,))
    return "within the tolerance"


def tried(name: str, dtype: torch.dtype, device: str) -> str:
    return f"{len(smoke.run(name, dtype, device).grads)} gradients"


def calls(device: str, only_run: bool) -> Iterator[tuple[str, Run]]:
    """What to run, by name."""

    def named(run: Callable[..., str], what: str | int, dtype: torch.dtype) -> tuple[str, Run]:
        return f"{run.__name__} {what} {str(dtype)[6:]}", partial(run, what, dtype, device)

    for name in smoke.CALLS:
        for dtype in smoke.DTYPES:
            # A matrix that is made of 16-bit rows is rounded once more: another matrix than that of float64.
            if only_run or not (name.startswith("cholesky") and dtype.itemsize < 4):
                yield named(tried if only_run else compared, name, dtype)
    if not only_run:
        for dtype in (torch.float32, torch.bfloat16):
            yield from (named(mirrored, rows, dtype) for rows in MIRRORED)
            yield from (named(wide, width, dtype) for width in WIDE)


@contextlib.contextmanager
def kernels_noted(file: Path | None) -> Iterator[None]:
    """Within it, names of the kernels that run on a GPU are noted, and written to a file if there is one."""
    if file is None:
        yield
        return
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities[torch.cuda.is_available() :]) as profile:
        yield
    names = {event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA}
    file.write_text(json.dumps(sorted(names), indent=1), encoding="utf-8")


def part(text: str) -> slice:
    """K/N as a slice."""
    number, parts = map(int, text.split("/"))
    return slice(number - 1, None, parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("backend", choices=("native", "triton"))
    parser.add_argument("--part", type=part, default=slice(None))
    parser.add_argument("--only-run", action="store_true")
    parser.add_argument("--kernels", type=Path)
    arguments = parser.parse_args()
    failed = 0
    with use_backend(arguments.backend), kernels_noted(arguments.kernels):
        for name, run in list(calls(arguments.device, arguments.only_run))[arguments.part]:
            try:
                verdict, said = "ok  ", run()
            except Exception as error:  # whatever it is, the next call may tell more
                verdict, said = "FAIL", f"{type(error).__name__}: {error}"
                failed += 1
            print(f"{verdict} {name:<44} {said}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
