"""How long the project is: the lines of its files in git, with comments and blank ones.

    python scripts/count.py [COMMIT]

Code is Python, C++, CUDA, shell and workflows outside of tests/; data is JSON.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
CODE = {".py", ".cpp", ".cu", ".cuh", ".h", ".sh", ".yml"}


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout


def kind(path: PurePosixPath) -> str | None:
    if path.suffix == ".json":
        return "data"
    if path.suffix not in CODE:
        return None
    return "tests" if path.parts[0] == "tests" else "code"


def count(commit: str) -> Counter[tuple[str, str]]:
    """Lines by kind and folder; those of the files in the work tree if no commit is named."""
    lines: Counter[tuple[str, str]] = Counter()
    listed = git("ls-tree", "-r", "--name-only", commit) if commit else git("ls-files")
    for path in map(PurePosixPath, listed.decode().splitlines()):
        if (found := kind(path)) is not None:
            text = git("show", f"{commit}:{path}") if commit else (ROOT / path).read_bytes()
            depth = 2 if path.parts[0] in ("csrc", "dmlkernels") else 1
            lines[found, "/".join(path.parts[:-1][:depth]) or "."] += text.count(b"\n")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="", help="the work tree without one")
    lines = count(parser.parse_args().commit)
    for (found, folder), number in sorted(lines.items()):
        print(f"{number:7,} {found:5} {folder}")
    for found in ("code", "tests", "data"):
        print(f"{sum(number for (each, _), number in lines.items() if each == found):7,} {found} in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
