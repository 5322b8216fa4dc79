"""Keeps what ran on which GPU, and writes docs/gpu-status.md: what is known of each kernel, and how.

    python -m scripts.gpu_status read RESULTS           results of `make gpu` (a folder, or its tar), and the document
    python -m scripts.gpu_status compiled LIBRARY...    which kernels there are, and for which architectures
    python -m scripts.gpu_status write                  the document alone
    python -m scripts.gpu_status machine FILE           for `make gpu`: what it runs on
    python -m scripts.gpu_status built LIBRARY COMMIT   for `make gpu-wheel`: what the wheel is made of

The document is made of files in bench/results: gpu-<device>.json of each run, kernels.json of `compiled` (of libraries,
and of figures that bench.report.triton_resources keeps), executed.json of the tests that run compiled kernels without
a GPU ({"host" or "ptx": {"cuda" or "triton": [kernel, ...]}}), and the model's predicted.json ({"kernels": {kernel:
...}}). A file that is not there has no column.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report import kernels, resources
from bench.report.tables import RESULTS, ROOT, grid, read_json, write_json

DOCUMENT = ROOT / "docs" / "gpu-status.md"
BACKENDS = {"native": "CUDA", "triton": "Triton"}
LANGUAGES = {"cuda": "CUDA", "triton": "Triton"}
TOOLS = ("memcheck", "racecheck")
EXECUTED = {"host": "executed on the host", "ptx": "executed as PTX"}
Kernels = dict[str, list[str]]  # names by language


def operations() -> list[str]:
    return sorted(path.stem for path in (ROOT / "dmlkernels" / "ops").glob("[a-z]*.py"))


def read_tests(files: Sequence[Path]) -> dict[str, dict[str, dict[str, int]]]:
    """Operation (or what else a file of tests is about) -> backend -> how many passed, failed and were skipped."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for file in files:
        for case in ET.parse(file).iter("testcase"):
            backend = re.search(r"\b(native|triton)-(?:cuda|cpu)\b", case.get("name", ""))
            if backend is None:
                continue
            topic = case.get("classname", "").split(".test_")[-1].split(".")[0]
            topic = next((name for name in operations() if topic.startswith(name)), topic)
            tags = {child.tag for child in case}
            outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
            counts = found.setdefault(topic, {}).setdefault(backend[1], {"passed": 0, "failed": 0, "skipped": 0})
            counts[outcome] += 1
    return found


def kernel_name(readable: str) -> str:
    """file.kernel, without the arguments of a template."""
    return readable.partition("<")[0]


def compiled(files: Iterable[Path]) -> dict[str, dict[str, list[str]]]:
    """Language -> kernel -> architectures, of CUDA libraries and of Triton's figures."""
    found: dict[str, dict[str, set[str]]] = {language: {} for language in LANGUAGES}
    for file in files:
        language = "triton" if file.suffix == ".json" else "cuda"
        for architecture, names in _by_architecture(file).items():
            for name in names:
                found[language].setdefault(kernel_name(name), set()).add(architecture)
    return {
        language: {name: sorted(of, key=int) for name, of in sorted(names.items())} for language, names in found.items()
    }


def _by_architecture(file: Path) -> dict[str, list[str]]:
    if file.suffix == ".json":
        return {architecture: list(names) for architecture, names in read_json(file).items()}
    return {name: list(resources.plain(_mangled(file, name)).values()) for name in resources.architectures(file)}


def _mangled(library: Path, architecture: str) -> list[str]:
    return list(resources.read_usage(resources._cuobjdump(library, "-arch", f"sm_{architecture}", "-res-usage")))


def signatures(library: Path) -> dict[str, str]:
    """What a profiler calls an entry -> the kernel, for which its name is not enough: files share names of kernels."""
    mangled = _mangled(library, resources.architectures(library)[0])
    readable = resources.plain(mangled)
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    return {line: kernel_name(readable[name]) for name, line in zip(mangled, text.splitlines(), strict=True)}


def named(seen: Iterable[str], of_signature: Mapping[str, str], known: Kernels) -> Kernels:
    """Kernels that a profiler saw. Triton's have their own name alone, which is that of one kernel or says nothing."""
    alone: dict[str, list[str]] = {}
    for name in known.get("triton", []):
        alone.setdefault(name.rpartition(".")[2], []).append(name)
    seen = set(seen)
    triton = {names[0] for name, names in alone.items() if name in seen and len(names) == 1}
    return {"cuda": sorted({of_signature[name] for name in seen & of_signature.keys()}), "triton": sorted(triton)}


def machine() -> dict[str, Any]:
    import torch

    there = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if there else "no GPU, dry run",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "when": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def sanitized(ended: Mapping[str, dict]) -> dict[str, str]:
    """A verdict on each tool, from how the processes under it ended."""
    verdicts = {}
    for tool in TOOLS:
        codes = [unit["code"] for name, unit in ended.items() if name.startswith(tool)]
        others = sorted({str(code) for code in codes if code not in (0, 9, None)})
        if 9 in codes:
            verdicts[tool] = "**errors**"
        elif others:
            verdicts[tool] = f"**did not run (exit status {', '.join(others)})**"
        elif codes:
            done = codes.count(0)
            verdicts[tool] = "clean" if done == len(codes) else f"clean in {done} of {len(codes)} parts, others cut off"
    return verdicts


def read_run(folder: Path, known: Kernels) -> dict[str, Any]:
    """A run of `make gpu` as it is kept."""
    built, ended = read_json(folder / "built.json"), read_json(folder / "steps.json")
    # The first step may have been cut off before it said what it ran on.
    ran_on = dict.fromkeys(("device", "torch", "cuda", "python", "when"), "unknown")
    ran_on |= _optional(folder / "check" / "machine.json")
    seen = [name for file in folder.glob("*/kernels.json") for name in read_json(file)]
    return {
        **ran_on,
        "commit": built["commit"],
        "steps": {step: [unit["code"] for unit in units.values()] for step, units in ended.items()},
        "topics": read_tests(sorted(folder.glob("*test/*.xml")) + sorted(folder.glob("large/*.xml"))),
        "sanitized": {
            backend: sanitized(ended.get(step, {}))
            for backend, step in (("native", "sanitize"), ("triton", "triton-sanitize"))
        },
        "bench": [read_json(file) for file in sorted(folder.glob("*bench/cases.json"))],
        "kernels": named(seen, built.get("signatures", {}), known),
    }


def keep_run(source: Path, results: Path) -> Path:
    """A run's results, from its folder or its tar, into gpu-<device>.json."""
    with tempfile.TemporaryDirectory() as folder:
        if source.is_file():
            with tarfile.open(source) as tar:
                tar.extractall(folder, filter="data")
        known = {language: list(names) for language, names in _optional(results / "kernels.json").items()}
        run = read_run(Path(folder) if source.is_file() else source, known)
    path = results / f"gpu-{re.sub(r'[^a-z0-9]+', '-', run['device'].lower()).strip('-')}.json"
    write_json(path, run)
    return path


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _verdict(counts: dict[str, int]) -> str:
    if counts["failed"]:
        return f"**{counts['failed']} failed**, {counts['passed']} passed"
    return f"{counts['passed']} passed" if counts["passed"] else "never run"


def _ended(codes: Sequence[int | None]) -> list[str]:
    good = sum(code in (0, 5) for code in codes)  # 5: pytest found no test of these kernels in a file
    return [str(good), str(len(codes) - good - codes.count(None)), str(codes.count(None))]


def render_device(run: dict) -> str:
    """All that ran on one device."""
    parts = [
        f"## {run['device']}\n\ntorch {run['torch']}, CUDA {run['cuda']}, Python {run['python']}; commit "
        f"{run['commit']}, {run['when']}.",
        "Processes of each step:\n\n"
        + grid(
            ["step", "passed", "failed", "cut off"], [[step, *_ended(codes)] for step, codes in run["steps"].items()]
        ),
    ]
    rows = []
    for topic in [*operations(), *sorted(set(run["topics"]) - set(operations()))]:
        of_backend = run["topics"].get(topic, {})
        rows.append([topic] + [_verdict(of_backend[b]) if b in of_backend else "never run" for b in BACKENDS])
    parts.append(f"Tests on CUDA tensors:\n\n{grid(['tests', *BACKENDS.values()], rows)}")
    rows = [[tool] + [run["sanitized"].get(b, {}).get(tool, "never run") for b in BACKENDS] for tool in TOOLS]
    parts.append(f"compute-sanitizer:\n\n{grid(['tool', *BACKENDS.values()], rows)}")
    for bench in run["bench"]:
        parts.append(f"Measured: {kernels.render_machine(bench)}.\n\n{kernels.render_all(bench)}")
    return "\n\n".join(parts)


NEVER = """No CUDA kernel and no Triton kernel has ever run on a GPU, and nothing has been measured on one. What stands
in for that: the CUDA kernels are compiled for every architecture and executed on the host (tests/cuda_host), the Triton
kernels run in Triton's interpreter and are compiled for every architecture, and what the compilers made of both is
judged (bench/report: spills, tensor cores). `make gpu` does the rest where there is a GPU."""


INTERPRETER = """## What Triton's interpreter cannot show

It runs the tests of every backend on CPU tensors, one program after another, with numpy. So it says nothing about:

- races: programs and threads that run at the same time, the order of atomic additions, a missing barrier. The schedule
  with atomics is compared with the one without, which is what deterministic algorithms take;
- products of tensor cores: rows are rounded to TF32 and bfloat16 by the kernels themselves and are tested, but float32
  products are three TF32 products on a GPU (`input_precision="tf32x3"`), with an accumulation of its own, and numpy's
  float32 products here. bfloat16 products are done in float32 (numpy has no bfloat16; the interpreter would truncate,
  and is given numbers that need no rounding). `exp` and `sqrt` are numpy's, and the GPU's approximate ones differ;
- memory: alignment, bank conflicts, offsets above 2³¹ (they are int64 and never that large in a test), shared memory
  and registers, for which the kernels are compiled to machine code instead (tests/build/test_triton_compile.py);
- speed. No block size has been tuned on a GPU: the pinned ones are those that compile without spills."""


def render_kernels(runs: Sequence[dict], results: Path) -> str:
    """What is known of each kernel; a column for each of the files that there are."""
    of_kernels, executed = _optional(results / "kernels.json"), _optional(results / "executed.json")
    predicted = {name.partition("<")[0] for name in _optional(results / "predicted.json").get("kernels", ())}
    ways = [way for way in EXECUTED if way in executed]
    header = ["kernel", *(EXECUTED[way] for way in ways), "compiled for", *(["predicted"] if predicted else [])]
    tables = []
    for language, title in LANGUAGES.items():
        rows = []
        for name, of in of_kernels.get(language, {}).items():
            row = [f"`{name}`", *("yes" if name in executed[way].get(language, []) else "no" for way in ways)]
            row += [", ".join(f"sm_{a}" for a in of), *(["yes" if name in predicted else "no"] if predicted else [])]
            ran = [run["device"] for run in runs if name in run["kernels"].get(language, [])]
            rows.append([*row, "; ".join(ran) or "never"])
        if rows:
            tables.append(f"{title}:\n\n{grid([*header, 'run on a GPU'], rows)}")
    return "\n\n".join(["## Kernel by kernel", *tables]) if tables else ""


def render(runs: Sequence[dict], results: Path = RESULTS) -> str:
    """The document."""
    lines = ["# What has run on a GPU", "<!-- written by scripts/gpu_status.py from files in bench/results -->"]
    if not runs:
        lines.append(NEVER)
    rows = []
    for operation in operations():
        cells = []
        for backend in BACKENDS:
            ran = [
                f"{_verdict(counts)} on {run['device']}"
                for run in runs
                if (counts := run["topics"].get(operation, {}).get(backend))
            ]
            cells.append("; ".join(ran) or "never run on a GPU")
        rows.append([operation, *cells])
    lines += [grid(["operation", *BACKENDS.values()], rows), render_kernels(runs, results)]
    return "\n\n".join([*filter(None, lines), *(render_device(run) for run in runs), INTERPRETER]) + "\n"


def read_all(folder: Path) -> list[dict]:
    return [read_json(path) for path in sorted(folder.glob("gpu-*.json"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    commands = parser.add_subparsers(required=True, dest="command")
    for command in ("read", "compiled", "machine", "built"):
        commands.add_parser(command).add_argument("of", nargs="+")
    commands.add_parser("write")
    arguments = parser.parse_args()
    if arguments.command == "machine":
        write_json(Path(arguments.of[0]), machine())
        return 0
    if arguments.command == "built":
        library, commit = arguments.of
        json.dump(machine() | {"commit": commit, "signatures": signatures(Path(library))}, sys.stdout, indent=1)
        return 0
    if arguments.command == "read":
        print(keep_run(Path(arguments.of[0]), arguments.results))
    elif arguments.command == "compiled":
        write_json(arguments.results / "kernels.json", compiled(map(Path, arguments.of)))
    arguments.document.write_text(render(read_all(arguments.results), arguments.results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
