"""Which tests catch which planted fault: `make mutants`.

    python -m scripts.mutants [--only WORD...] [--rest] [--out FILE]

WORD: numbers of faults, or parts of the names of their files. The tree is copied to build/mutants, where every fault of
a C++ or CUDA source becomes `dml_fault(N) ? (wrong) : (right)`: one build holds all of them, and the environment
variable DML_FAULT chooses one. A fault of a Python or Triton file is written into a copy of its own. Each runs the
default tier's tests of its layer until one fails, 90 seconds at most; with --rest, the full tier's where none did.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.report.faults import table

from .faults import BACKENDS, FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
RESULTS = ROOT / "bench" / "results" / "mutants.json"
SECONDS = 90
SWITCH = """
// Of scripts/mutants.py: which fault is planted. Not inline: the units of each instruction set have their own.
#include <cstdlib>
namespace {
[[maybe_unused]] const int dml_chosen_fault = [] {
  const char* const chosen = std::getenv("DML_FAULT");
  return chosen == nullptr ? 0 : std::atoi(chosen);
}();
[[maybe_unused]] bool dml_fault(int number) { return number == dml_chosen_fault; }
}  // namespace
"""


def planted(text: str, number: int, fault: Fault) -> str:
    """The text of its file with the fault, behind a switch if it is compiled."""
    if text.count(fault.right) != 1:
        raise ValueError(f"fault {number}: {fault.file} must hold {fault.right!r} once, got {text.count(fault.right)}")
    if not fault.compiled:
        return text.replace(fault.right, fault.wrong)
    if fault.right.endswith(";"):
        return text.replace(fault.right, f"if (dml_fault({number})) {{ {fault.wrong} }} else {{ {fault.right} }}")
    return text.replace(fault.right, f"(dml_fault({number}) ? ({fault.wrong}) : ({fault.right}))")


def copy_tree() -> None:
    """The files that git knows, in TREE; what did not change keeps its time, so that builds are repeated in part."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    sources = {name: (ROOT / name).read_bytes() for name in listed.split("\0") if name and (ROOT / name).is_file()}
    numbered = list(enumerate(FAULTS, 1))
    for file in {fault.file for fault in FAULTS if fault.compiled}:
        text = sources[file].decode()
        for number, fault in numbered:
            text = planted(text, number, fault) if fault.file == file else text
        after = text.index("#pragma once\n") + len("#pragma once\n") if "#pragma once\n" in text else 0
        sources[file] = (text[:after] + '#include "dml_fault.h"\n' + text[after:]).encode()
    sources["csrc/dml_fault.h"] = ("#pragma once\n" + SWITCH).encode()
    for name, content in sources.items():
        path = TREE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
    link = TREE / "dmlkernels" / "triton_kernels"
    if not link.is_symlink():
        link.symlink_to("../triton_kernels")


def build() -> None:
    environment = {**os.environ, "DMLKERNELS_CUDA": "off"}
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=TREE, env=environment, check=True)
    folder = next((TREE / "build").glob("native-*"))
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=search)
    assert cmake is not None
    subprocess.run([cmake, "--build", folder, "--target", "dmlkernels_cuda_host"], check=True)


def pytest_of(fault: Fault, number: int, tree: Path, tier: str) -> tuple[str, str]:
    """ "caught", "missed" or "out of time"; and the test that failed, or what stands at the end of the output."""
    files = [
        str(p.relative_to(tree))
        for pattern in fault.tests.split()
        for p in sorted((tree / "tests").glob(f"{pattern}.py"))
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist"]
    selection = f"{BACKENDS[fault.layer]} or not ({' or '.join(sorted(set(BACKENDS.values())))})"
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "DML_FAULT": str(number)}
    try:
        done = subprocess.run(
            [*command, "-m", tier, "-k", selection, *files],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS if tier == "not slow and not full" else 10 * SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "out of time", ""
    if failed := re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE):
        return "caught", failed[1]
    if done.returncode < 0:
        return "caught", f"signal {-done.returncode}"
    return "missed", (done.stdout + done.stderr).strip().splitlines()[-1]


def without_fault(number: int) -> str:
    """The test that fails, of those that should catch a fault, where there is none: then they say nothing."""
    fault = FAULTS[number - 1]
    outcome, by = pytest_of(fault, 0, TREE, "not slow and not full")
    return by if outcome == "caught" else ""


def try_fault(number: int, rest: bool) -> dict[str, Any]:
    fault, tree, start = FAULTS[number - 1], TREE, time.monotonic()
    if not fault.compiled:
        tree = WORK / f"tree-{number}"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(
            TREE, tree, symlinks=True, copy_function=os.link, ignore=shutil.ignore_patterns("build", "docs")
        )
        text = (tree / fault.file).read_text(encoding="utf-8")
        (tree / fault.file).unlink()
        (tree / fault.file).write_text(planted(text, number, fault), encoding="utf-8")
    outcome, by = pytest_of(fault, number, tree, "not slow and not full")
    tier = "default"
    if rest and outcome != "caught":
        outcome, by = pytest_of(fault, number, tree, "full and not slow")
        tier = "full"
    if tree != TREE:
        shutil.rmtree(tree)
    row = {"number": number, **fault._asdict(), "layer": fault.layer, "outcome": outcome, "tier": tier, "by": by}
    print(f"{number:3} {fault.layer:9} {outcome:11} {time.monotonic() - start:4.0f} s  {fault.file}: {by}", flush=True)
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD")
    parser.add_argument("--rest", action="store_true", help="the full tier where the default tier missed")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    chosen = [
        number
        for number, fault in enumerate(FAULTS, 1)
        if not options.only or any(word == str(number) or word in fault.file for word in options.only)
    ]
    copy_tree()
    build()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for broken in pool.map(without_fault, {(FAULTS[k - 1].layer, FAULTS[k - 1].tests): k for k in chosen}.values()):
            if broken:
                raise SystemExit(f"{broken} fails without a fault")
        rows = list(pool.map(lambda number: try_fault(number, options.rest), chosen))
    if not options.only:
        kept = [{name: row[name] for name in ("number", "layer", "file", "outcome", "tier", "by")} for row in rows]
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in kept)
        options.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(table(rows))
    by_default = {row["number"] for row in rows if row["outcome"] == "caught" and row["tier"] == "default"}
    unexplained = [row["number"] for row in rows if row["number"] not in by_default and not row["missed"]]
    by_none = [row["number"] for row in rows if row["outcome"] != "caught"] if options.rest else []
    for words, numbers in (("missed by the default tier without a reason", unexplained), ("missed by all", by_none)):
        if numbers:
            print(f"{words}: {numbers}")
    return bool(unexplained or by_none)


if __name__ == "__main__":
    raise SystemExit(main())
