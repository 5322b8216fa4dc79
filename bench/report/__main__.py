"""Puts the tables of bench/results into the documents. Numbers there come from here, never by hand.

python -m bench.report            write them
python -m bench.report --check    exit with 1 if a document differs from the results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.report import faults, kernels, losses, methods, predict
from bench.report.tables import ROOT, filled

Blocks = dict[str, Callable[[], str]]  # name between the markers -> what stands there


def of(measured: Callable[[], Any], blocks: Mapping[str, Callable[[Any], str]]) -> Blocks:
    """Blocks of what was measured."""
    return {name: lambda render=render: render(measured()) for name, render in blocks.items()}  # type: ignore[misc]


DOCUMENTS: dict[str, Blocks] = {
    "README.md": {"losses": losses.overview, **of(kernels.measured, {"bench:cpu": kernels.summaries})},
    "CONTRIBUTING.md": of(faults.measured, {"faults": faults.table}),
    "docs/performance.md": {
        **of(kernels.measured, {"bench:cpu": kernels.everything}),
        **of(predict.measured, {"predicted": predict.table}),
    },
    "docs/losses.md": {"losses:formulae": losses.formulae, **of(losses.measured, losses.BLOCKS)},
    "docs/methods.md": of(methods.measured, methods.BLOCKS),
}


def stale(write: bool) -> list[str]:
    """Documents that differ from the committed results; with `write`, they are brought up to date."""
    different = []
    for name, blocks in DOCUMENTS.items():
        text = wanted = (ROOT / name).read_text(encoding="utf-8")
        for block, render in blocks.items():
            wanted = filled(wanted, block, render())
        if wanted != text:
            different.append(name)
            if write:
                (ROOT / name).write_text(wanted, encoding="utf-8")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    different = stale(write=not check)
    for name in different:
        print(f"{name}: {'differs; run python -m bench.report' if check else 'written'}")
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
