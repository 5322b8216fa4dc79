"""`python -m dmlkernels`: info, check, train, demo and bench."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dmlkernels

from ._info import show as show_info
from .selfcheck import run as run_check
from .train import cli


def _info(arguments: argparse.Namespace) -> int:
    show_info()
    return 0


def _check(arguments: argparse.Namespace) -> int:
    return run_check()


def _bench(arguments: argparse.Namespace) -> int:
    root = Path(dmlkernels.__file__).resolve().parent.parent
    if not (root / "bench" / "kernels" / "run.py").is_file():
        print("bench: the benchmarks are in the repository, not in the wheel; run it from a clone", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "bench.kernels.run", *arguments.rest], cwd=root).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmlkernels", description=dmlkernels.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    simple: list[tuple[str, Callable[[argparse.Namespace], int], str]] = [
        ("info", _info, "what is available here and why the rest is not"),
        ("check", _check, "numeric self-test of every operation and backend of this machine against float64"),
    ]
    for name, run, text in simple:
        commands.add_parser(name, help=text).set_defaults(run=run)
    bench = commands.add_parser("bench", help="the benchmark table (arguments go to bench/kernels/run.py)")
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    bench.set_defaults(run=_bench)
    cli.add_parsers(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
