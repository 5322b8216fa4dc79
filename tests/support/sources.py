"""What the C++ sources include and register."""

from __future__ import annotations

import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"


def reachable_includes(path: Path) -> set[str]:
    """Every header name that a source reaches through the files of csrc."""
    names: set[str] = set()
    todo = [path]
    while todo:
        current = todo.pop()
        for name in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', current.read_text(), re.MULTILINE):
            if name in names:
                continue
            names.add(name)
            todo += [file for file in (CSRC / name, current.parent / name) if file.is_file()][:1]
    return names


def registered(source: Path) -> set[str]:
    return set(re.findall(r'\bimpl\(\s*"(\w+)"', source.read_text()))
