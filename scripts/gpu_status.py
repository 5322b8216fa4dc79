"""Keeps what ran on which GPU, and writes docs/gpu-status.md from it.

    python scripts/gpu_status.py record STAGE FILE...   one stage of `make gpu`, into bench/results/gpu-<device>.json
    python scripts/gpu_status.py write                  the document, from all of them

FILE: for "test" pytest's reports (JUnit XML), for "bench" the results of bench/kernels/run.py, for the others JSON of
gpu.sh.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "gpu-status.md"
BACKENDS = {"native": "CUDA", "triton": "Triton"}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")

sys.path.insert(0, str(ROOT))  # a script has its own folder there
from bench.report import kernels  # noqa: E402
from bench.report.tables import RESULTS, grid, read_json, write_json  # noqa: E402


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


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> str:
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "dmlkernels", "triton_kernels")
    return (_git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")


def device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, dry run"


def record(stage: str, files: Sequence[Path], results: Path) -> Path:
    """Put one stage into the results of this device; the other stages keep what they had."""
    import torch

    name = device()
    path = results / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    kept = read_json(path) if path.is_file() else {}
    stamp = {"commit": commit(), "when": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"}
    content = {"topics": read_tests(files)} if stage == "test" else read_json(files[0])
    kept |= {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, stage: stamp | content}
    write_json(path, kept)
    return path


def _at(stage: dict) -> str:
    return f"commit {stage['commit']}, {stage['when']}"


def _verdict(counts: dict[str, int]) -> str:
    if counts["failed"]:
        return f"**{counts['failed']} failed**, {counts['passed']} passed"
    return f"{counts['passed']} passed" if counts["passed"] else "never run"


def render_device(results: dict) -> str:
    """All that ran on one device."""
    parts = [f"## {results['device']}\n\ntorch {results['torch']}, CUDA {results['cuda']}."]
    if build := results.get("build"):
        parts.append(f"Built for {', '.join(build['architectures'])} in {build['seconds']} s ({_at(build)}).")
    if test := results.get("test"):
        others = sorted(set(test["topics"]) - set(operations()))
        rows = []
        for topic in [*operations(), *others]:
            of_backend = test["topics"].get(topic, {})
            rows.append([topic] + [_verdict(of_backend[b]) if b in of_backend else "never run" for b in BACKENDS])
        parts.append(f"Tests on CUDA tensors ({_at(test)}):\n\n{grid(['tests', *BACKENDS.values()], rows)}")
    else:
        parts.append("The tests have never run on it.")
    if sanitize := results.get("sanitize"):
        rows = [[tool, sanitize["tools"].get(tool, "never run")] for tool in TOOLS]
        parts.append(f"compute-sanitizer ({_at(sanitize)}):\n\n{grid(['tool', 'result'], rows)}")
    else:
        parts.append("compute-sanitizer has never run on it.")
    if bench := results.get("bench"):
        parts.append(f"Measured ({_at(bench)}): {kernels.render_machine(bench)}.\n\n{kernels.render_all(bench)}")
    else:
        parts.append("Nothing has been measured on it.")
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


def render(all_results: Sequence[dict]) -> str:
    """The document."""
    lines = ["# What has run on a GPU", "<!-- written by scripts/gpu_status.py from bench/results/gpu-*.json -->"]
    if not all_results:
        lines.append(NEVER)
    rows = []
    for operation in operations():
        cells = []
        for backend in BACKENDS:
            ran = [
                f"{_verdict(counts)} on {results['device']}"
                for results in all_results
                if (counts := results.get("test", {}).get("topics", {}).get(operation, {}).get(backend))
            ]
            cells.append("; ".join(ran) or "never run on a GPU")
        rows.append([operation, *cells])
    lines.append(grid(["operation", *BACKENDS.values()], rows))
    return "\n\n".join([*lines, *(render_device(results) for results in all_results), INTERPRETER]) + "\n"


def read_all(folder: Path) -> list[dict]:
    return [read_json(path) for path in sorted(folder.glob("gpu-*.json"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    commands = parser.add_subparsers(required=True, dest="command")
    recording = commands.add_parser("record")
    recording.add_argument("stage", choices=("build", "test", "sanitize", "bench"))
    recording.add_argument("files", type=Path, nargs="+")
    commands.add_parser("write")
    arguments = parser.parse_args()
    if arguments.command == "record":
        print(record(arguments.stage, arguments.files, arguments.results))
    arguments.document.write_text(render(read_all(arguments.results)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
