"""What every report is made with: Markdown tables, blocks of a document that are made anew, and files of results."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmlkernels.train.config import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
LINE = 700  # characters: a training, or a contender of a case, takes a line or a few


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up, so that a terminal shows it as well."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def filled(text: str, block: str, body: str) -> str:
    """A document with what stands between the markers of a block made anew; without markers, as it is."""
    begin, end = f"<!-- {block} begin -->", f"<!-- {block} end -->"
    between = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return between.sub(lambda _: "\n".join([begin, *([body] if body else []), end]), text)


def last(run: dict[str, Any], metric: str) -> float:
    """What a training ended with."""
    return run["evaluations"][-1][metric]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, results: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_text(_dumped(results, 0) + "\n", encoding="utf-8"))


def _dumped(value: Any, depth: int) -> str:
    """JSON in which what fits a LINE stands in one."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(line) + depth <= LINE or not isinstance(value, (dict, list)):
        return line
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_dumped(entry, depth + 1)}" for key, entry in value.items()]
    else:
        items = [_dumped(entry, depth + 1) for entry in value]
    lines = ",\n".join(" " * (depth + 1) + item for item in items)
    return f"{line[0]}\n{lines}\n{' ' * depth}{line[-1]}"
