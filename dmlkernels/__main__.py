"""`python -m dmlkernels`: info, check, train, demo and bench."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import dmlkernels

from . import _backend
from .selfcheck import run as run_check
from .train import cli


def _info(arguments: argparse.Namespace) -> int:
    """What is available here and why the rest is not: paste it into a bug report."""
    lines = [
        ("dmlkernels", dmlkernels.__version__),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        ("backend", f'"{dmlkernels.get_backend()}", float32 products "{dmlkernels.get_float32_precision()}"'),
    ]
    for device in ("cpu", "cuda"):
        there = device in _backend.loaded["native"]
        lines.append((f"native {device}", _native(device) if there else f"no: {_backend.missing['native', device]}"))
    for device in ("cpu", "cuda"):
        there = device in _backend.loaded["triton"]
        lines.append((f"triton {device}", _triton(device) if there else f"no: {_backend.missing['triton', device]}"))
    for module in ("matplotlib", "PIL", "scipy", "tqdm", "timm"):
        lines.append((module, "found" if importlib.util.find_spec(module) else "no"))
    for name, value in lines:
        print(f"{name:<12} {value}")
    return 0


def _native(device: str) -> str:
    from . import _C

    info = _C.build_info()
    if device == "cpu":
        built = f"{info['compiler']}, torch {info['torch_version']}"
        return f"yes, {_C.cpu_capability()} of {', '.join(info['cpu_isas'])} (built with {built})"
    return f"yes, for {', '.join(info['cuda_architectures'])}"


def _triton(device: str) -> str:
    version = importlib.metadata.version("triton")
    return f"yes, Triton {version}" + (", interpreted: for tests" if device == "cpu" else "")


def _check(arguments: argparse.Namespace) -> int:
    return run_check()


def _bench(arguments: argparse.Namespace) -> int:
    script = Path(dmlkernels.__file__).resolve().parent.parent / "bench" / "run.py"
    if not script.is_file():
        print("bench: the benchmarks are in the repository, not in the wheel; run it from a clone", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, str(script), *arguments.rest]).returncode


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dmlkernels", description=dmlkernels.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    simple: list[tuple[str, Callable[[argparse.Namespace], int], str]] = [
        ("info", _info, "what is available here and why the rest is not"),
        ("check", _check, "numeric self-test of every operation and backend of this machine against float64"),
    ]
    for name, run, text in simple:
        commands.add_parser(name, help=text).set_defaults(run=run)
    bench = commands.add_parser("bench", help="the benchmark table (arguments go to bench/run.py)")
    bench.add_argument("rest", nargs=argparse.REMAINDER)
    bench.set_defaults(run=_bench)
    cli.add_parsers(commands)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
