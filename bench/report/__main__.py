"""Puts the tables of bench/results into the documents. Numbers there come from here, never by hand.

python -m bench.report            write them
python -m bench.report --check    exit with 1 if a document differs from the results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bench.report import kernels, losses, methods
from bench.report.tables import ROOT, filled


class Document(NamedTuple):
    measured: Callable[[], Any]
    blocks: Mapping[str, Callable[[Any], str]]  # name between the markers -> what stands there, of what was measured


DOCUMENTS = {
    "README.md": Document(kernels.measured, {"bench:cpu": kernels.summaries}),
    "docs/performance.md": Document(kernels.measured, {"bench:cpu": kernels.everything}),
    "docs/losses.md": Document(losses.measured, losses.BLOCKS),
    "docs/methods.md": Document(methods.measured, methods.BLOCKS),
}


def stale(write: bool) -> list[str]:
    """Documents that differ from the committed results; with `write`, they are brought up to date."""
    different = []
    for name, document in DOCUMENTS.items():
        text = wanted = (ROOT / name).read_text(encoding="utf-8")
        results = document.measured()
        for block, render in document.blocks.items():
            wanted = filled(wanted, block, render(results))
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
