"""What the C++ sources include and register, and what the Triton ones launch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


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


def launched_kernels() -> set[str]:
    """module.kernel of every `launch(kernel, grid)(...)` in triton_kernels."""
    found = set()
    for path in (ROOT / "triton_kernels").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name: alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "launch"):
                continue
            kernel = node.args[0]
            if isinstance(kernel, ast.Attribute) and isinstance(kernel.value, ast.Name):
                found.add(f"{imported[kernel.value.id]}.{kernel.attr}")
            elif isinstance(kernel, ast.Name):
                found.add(f"{path.stem}.{kernel.id}")
    return found
