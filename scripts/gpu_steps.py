"""The steps of `make gpu`, in the folder that scripts/gpu.sh prepares.

    python -m scripts.gpu_steps RESULTS [--again] [--list]

A step is some processes, a number of them side by side, and a limit. What one of them does, a crash of CUDA or a hang,
is its own affair: at the limit those that are left are interrupted, and the next step begins. RESULTS has a folder for
each step with what each process printed and wrote, and in steps.json how each ended; where OUT is set they are in
$OUT/gpu.tar.xz after every step. --again runs what has not passed.

DRY=1 runs the first processes of each step on the CPU, at small sizes; LIMIT=SECONDS is another limit of every step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

GRACE = 5.0  # seconds of a limit that are left to write what there is, once interrupted
LARGEST_TAR, LONGEST_LOG = 16_000_000, 100_000  # bytes; of a log its end
PARTS = 12  # processes that share the smoke calls

# Of many processes side by side none takes all cores.
SHARED = {"OMP_NUM_THREADS": "1"}
# A block that the allocator caches is larger than the tensor in it: overruns would stay unseen.
UNCACHED = SHARED | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
LARGE = Path("tests/ops/test_large.py")
TIER = "not slow and not full"
TRITON_TESTS = (
    "spherical_expansion",
    "pair_loss",
    "pairwise",
    "nearest_positive",
    "triplet",
    "coding_rate",
    "cholesky",
)
# How many processes of a step a dry run has; those without one would repeat what another has done.
DRY = {"check": 2, "smoke": 1, "sanitize": 1, "test": 1, "large": 1, "bench": 1}
DRY |= {"triton-check": 1, "triton-sanitize": 0, "triton-test": 1, "triton-bench": 0}
RIVALS = ("product", "reference", "peer", "mcr2_loop", "logdet", "compiled")  # of the native kernels


class Unit(NamedTuple):
    """One process."""

    name: str
    command: Sequence[str]  # {out}: the path of its own files, without a suffix
    tries: int = 1  # how often it is begun, if it does not pass
    good: tuple[int, ...] = (0,)  # exit statuses with which it has passed

    @property
    def file(self) -> str:
        return re.sub(r"[^a-z0-9_]+", "-", self.name.lower()).strip("-")


class Step(NamedTuple):
    name: str
    seconds: float
    units: Sequence[Unit]
    jobs: int = 1  # processes side by side
    environment: Mapping[str, str] = {}


def triton_tests() -> list[Path]:
    return [Path("tests", "ops", f"test_{name}.py") for name in TRITON_TESTS]


def steps(dry: bool, jobs: int) -> list[Step]:
    """In their order: first what tells soon that all is wrong, then what is wanted most."""
    from dmlkernels.selfcheck import CASES

    device, interpreted = ("cpu", {"TRITON_INTERPRET": "1"}) if dry else ("cuda", {})
    run = [sys.executable, "-m"]

    def checks(backend: str) -> list[Unit]:
        options = ["--backend", backend, "--device", device]
        return [Unit(case.name, [*run, "dmlkernels", "check", *options, case.name]) for case in CASES]

    def smoke(backend: str, *options: str, under: Sequence[str] = (), name: str = "part") -> list[Unit]:
        command = [*under, sys.executable, "-m", "scripts.gpu_smoke", device, backend, *options]
        parts = 8 * PARTS if dry else PARTS
        return [Unit(f"{name} {k}", [*command, "--part", f"{k}/{parts}"]) for k in range(1, parts + 1)]

    def sanitized(tool: str, backend: str) -> list[Unit]:
        under = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        ours = ["--kernel-name", "kns=_ZN3dml"] if backend == "native" else []
        return smoke(backend, "--only-run", under=[] if dry else [*under, *ours], name=tool)

    def tests(backend: str, paths: Iterable[Path]) -> list[Unit]:
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-m", TIER]
        options += ["-k", f"{backend}-{device}", "--junitxml", "{out}.xml"]
        # 5: a file may have no test of these kernels.
        return [Unit(path.stem, [*run, "pytest", str(path), *options], good=(0, 5)) for path in paths]

    def bench(*rivals: str) -> list[Unit]:
        options = ["--device", "cuda", "--again", "--out", "{out}.json", "--rivals", *rivals]
        return [Unit("cases", [*run, "bench.kernels.run", *options, *(["--dry"] if dry else [])], tries=3)]

    def names(backend: str) -> list[Unit]:
        options = ["--only-run", "--kernels", "{out}.json"]
        return [Unit("kernels", [sys.executable, "-m", "scripts.gpu_smoke", device, backend, *options])]

    described = Unit("machine", [*run, "scripts.gpu_status", "machine", "{out}.json"])
    native = [path for folder in ("ops", "losses") for path in sorted(Path("tests", folder).glob("test_*.py"))]
    native.remove(LARGE)
    plan = [
        Step("check", 30, [described, *checks("native")], jobs, SHARED),
        Step("smoke", 30, smoke("native") + names("native"), jobs, SHARED),
        Step("sanitize", 60, sanitized("memcheck", "native") + sanitized("racecheck", "native"), jobs, UNCACHED),
        Step("test", 150, tests("native", native), jobs, SHARED),
        Step("large", 40, tests("native", [LARGE])),
        Step("bench", 120, bench(*RIVALS)),
        Step("triton-check", 25, checks("triton") + names("triton"), jobs, SHARED | interpreted),
        Step("triton-sanitize", 15, sanitized("memcheck", "triton"), jobs, UNCACHED | interpreted),
        Step("triton-test", 25, tests("triton", triton_tests()), jobs, SHARED | interpreted),
        Step("triton-bench", 25, bench("product", "triton")),
    ]
    return [step._replace(units=step.units[: DRY[step.name]]) for step in plan] if dry else plan


class Results:
    """The folder: how each unit ended is known from steps.json, to whoever repeats what failed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._index = folder, folder / "steps.json"
        self.ended: dict[str, dict[str, dict]] = {}
        if self._index.is_file():
            self.ended = json.loads(self._index.read_text(encoding="utf-8"))

    def passed(self, step: Step, unit: Unit) -> bool:
        return self.ended.get(step.name, {}).get(unit.name, {}).get("passed", False)

    def keep(self, step: Step, unit: Unit, code: int | None, seconds: float) -> None:
        """code: None if the limit came first."""
        ended = {"code": code, "passed": code in unit.good, "seconds": round(seconds, 1), "file": unit.file}
        self.ended.setdefault(step.name, {})[unit.name] = ended
        part = self._index.with_suffix(".part")
        part.write_text(json.dumps(self.ended, indent=1), encoding="utf-8")
        part.replace(self._index)

    def said(self, step: Step) -> str:
        ended = self.ended.get(step.name, {}).values()
        passed, cut = sum(unit["passed"] for unit in ended), sum(unit["code"] is None for unit in ended)
        return f"{passed} passed, {len(ended) - passed - cut} failed, {cut} cut off"

    def path(self, step: Step, unit: Unit) -> Path:
        path = self.folder / step.name / unit.file
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def pack(self, target: Path) -> None:
        """One tar of all, without logs if it would be too large with them."""
        part = target.with_name(f"{target.name}.part")
        for logs in (True, False):
            with tarfile.open(part, "w:xz") as tar:
                for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
                    content = path.read_bytes()
                    if path.suffix == ".log":
                        content = content[-LONGEST_LOG:] if logs else b""
                    entry = tarfile.TarInfo(str(path.relative_to(self.folder)))
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            if part.stat().st_size <= LARGEST_TAR:
                break
        part.replace(target)


class Running(NamedTuple):
    unit: Unit
    process: subprocess.Popen
    began: float


def start(step: Step, unit: Unit, results: Results) -> Running:
    out = results.path(step, unit)
    command = [word.replace("{out}", str(out)) for word in unit.command]
    with out.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | step.environment,
            start_new_session=True,  # a group of its own, to be ended with its children
            # A shell leaves interrupts ignored for what it runs in the background, and the children of that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Running(unit, process, time.monotonic())


def end(running: Iterable[Running], seconds: float) -> None:
    """Interrupt processes, which then write what they have; kill what is left after so long."""
    deadline = time.monotonic() + seconds
    for one in running:
        os.killpg(one.process.pid, signal.SIGINT)
    for one in running:
        try:
            one.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def perform(step: Step, results: Results, again: bool) -> None:
    """Run the units of a step, or of those that --again is for, until its limit."""
    deadline = time.monotonic() + step.seconds - GRACE
    waiting = [unit for unit in step.units if not (again and results.passed(step, unit))]
    tried: dict[str, int] = {}
    running: list[Running] = []
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < step.jobs:
                running.append(start(step, waiting.pop(0), results))
            time.sleep(0.05)
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                tried[one.unit.name] = tried.get(one.unit.name, 0) + 1
                results.keep(step, one.unit, one.process.returncode, time.monotonic() - one.began)
                if not results.passed(step, one.unit) and tried[one.unit.name] < one.unit.tries:
                    waiting.append(one.unit)
    finally:
        end(running, GRACE)
        for one in running:
            results.keep(step, one.unit, None, time.monotonic() - one.began)
        for unit in waiting:
            if unit.name not in tried:
                results.keep(step, unit, None, 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--again", action="store_true", help="only what has not passed")
    parser.add_argument(
        "--list", action="store_true", help="the steps, their limits and processes, in place of running"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this gets what there is, too
    dry = os.environ.get("DRY") == "1"
    plan = steps(dry, jobs=min(PARTS, os.cpu_count() or 1))
    if arguments.list:
        for step in plan:
            print(f"{step.seconds:4g} s  {step.name:<16} {len(step.units):3} processes")
        return 0
    results, began = Results(arguments.results), time.monotonic()
    for step in plan:
        if limit := os.environ.get("LIMIT"):
            step = step._replace(seconds=float(limit))
        try:
            perform(step, results, arguments.again)
        finally:
            if out := os.environ.get("OUT"):
                results.pack(Path(out, "gpu.tar.xz"))
        print(f"{time.monotonic() - began:4.0f} s  {step.name:<16} {results.said(step)}", flush=True)
    return int(not all(unit["passed"] for units in results.ended.values() for unit in units.values()))


if __name__ == "__main__":
    sys.exit(main())
