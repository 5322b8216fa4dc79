"""The table of planted faults: how many of each layer the tests catch (`make mutants`)."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench.report.tables import RESULTS, grid, read_json


def table(rows: list[dict[str, Any]]) -> str:
    """By layer and tier."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        of_layer = [row for row in rows if row["layer"] == layer]
        count = Counter(row["tier"] if row["outcome"] == "caught" else "missed" for row in of_layer)
        lines.append([layer, *map(str, (len(of_layer), count["default"], count["full"], count["missed"]))])
    return grid(["layer", "faults", "caught by `make test`", "by `make test-full` only", "missed"], lines)


def measured() -> list[dict[str, Any]]:
    return read_json(RESULTS / "mutants.json")
