"""What a wheel must and must not contain: `python scripts/check_wheel.py FILE.whl`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 60e6  # bytes
KERNELS = ("dmlkernels/lib/libdmlkernels_cpu.so", "dmlkernels/lib/libdmlkernels_cuda.so")
# Mangled names of at::, c10:: and torch::, which change from one torch to the next, and Python's own.
UNSTABLE = re.compile(r"NK?(?:2at|3c10|5torch)\d")
PYTHON = re.compile(r"^_?Py[A-Z_]")


def expected() -> set[str]:
    """Every file that the wheel takes from the repository as it is, and the kernel libraries."""
    sources = [*ROOT.glob("dmlkernels/**/*.py"), *ROOT.glob("triton_kernels/**/*.py")]
    sources += [ROOT / "dmlkernels" / "py.typed", ROOT / "dmlkernels" / "_C.pyi"]
    names = {str(path.relative_to(ROOT)) for path in sources}
    return {re.sub("^triton_kernels/", "dmlkernels/triton_kernels/", name) for name in names} | set(KERNELS)


def wrong_names(names: set[str]) -> list[str]:
    """Files that are missing, and files that do not belong to the package."""
    problems = [f"lacks {name}" for name in sorted(expected() - names)]
    if not any(re.fullmatch(r"dmlkernels/_C\..*\.so", name) for name in names):
        problems.append("lacks the module dmlkernels._C")
    strange = [name for name in names if not re.match(r"dmlkernels(-[^/]+\.dist-info)?/", name)]
    return problems + [f"has {name}, which would be installed outside the package" for name in sorted(strange)]


def _tool(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wrong_symbols(library: Path) -> list[str]:
    """Functions that bind a kernel library to one torch or one Python, and paths of the machine that built it."""
    undefined = [line.split()[-1] for line in _tool("nm", "-D", "--undefined-only", library).splitlines()]
    problems = [f"needs {name}" for name in undefined if UNSTABLE.search(name) or PYTHON.match(name)]
    if re.search(r"\((?:RPATH|RUNPATH)\)", dynamic := _tool("readelf", "-d", library)):
        problems.append("has a search path of the machine that built it")
    if "cuda" in library.name:
        # torch loads these two without making their functions visible to others: they must be named.
        problems += [f"does not name {name}" for name in ("libtorch_cuda.so", "libcudart.so") if name not in dynamic]
    return [f"{library.name} {problem}" for problem in problems]


def problems_of(wheel: Path) -> list[str]:
    size = wheel.stat().st_size
    problems = [] if size <= LARGEST else [f"has {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}"]
    if "manylinux" not in wheel.name:
        problems.append("has no manylinux tag: it would install on no other machine")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        problems += wrong_names(names)
        for name in sorted(names & set(KERNELS)):
            problems += wrong_symbols(Path(archive.extract(name, folder)))
    return problems


def main() -> int:
    wheel = Path(sys.argv[1])
    problems = problems_of(wheel)
    for problem in problems:
        print(f"{wheel.name} {problem}", file=sys.stderr)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
