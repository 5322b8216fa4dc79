"""`python -m dmlkernels`: info, check, train, demo and bench."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import dmlkernels

from . import selfcheck
from ._info import show as show_info
from .train import cli


def _info(arguments: argparse.Namespace) -> int:
    show_info()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    there = selfcheck.targets()
    chosen = [(b, d) for b, d in there if arguments.backend in (None, b) and arguments.device in (None, d)]
    unknown = sorted(set(arguments.names) - {case.name for case in selfcheck.CASES})
    if unknown:
        print(f"check: no operation is called {unknown[0]!r}", file=sys.stderr)
    elif not chosen:
        print("check: no such backend for such a device here, see `python -m dmlkernels info`", file=sys.stderr)
    else:
        return selfcheck.run(arguments.names, chosen)
    return 2


def _bench(arguments: argparse.Namespace) -> int:
    root = Path(dmlkernels.__file__).resolve().parent.parent
    if not (root / "bench" / "kernels" / "run.py").is_file():
        print("bench: the benchmarks are in the repository, not in the wheel; run it from a clone", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "bench.kernels.run", *arguments.rest], cwd=root).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmlkernels", description=dmlkernels.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what is available here and why the rest is not")
    info.set_defaults(run=_info)
    check = commands.add_parser(
        "check", help="numeric self-test of every operation and backend of this machine against float64"
    )
    check.add_argument("names", nargs="*", metavar="OPERATION", help="as its lines name it (default: every one)")
    check.add_argument("--backend", choices=("native", "triton", "reference"), help="only this one")
    check.add_argument("--device", choices=("cpu", "cuda"), help="only tensors there")
    check.set_defaults(run=_check)
    bench = commands.add_parser("bench", help="the benchmark table (arguments go to bench/kernels/run.py)")
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    bench.set_defaults(run=_bench)
    cli.add_parsers(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
