"""The steps of `make gpu`: what runs, in which order and for how long, and that whatever happens, results are kept."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from cuda_host import smoke

from dmlkernels.selfcheck import CASES
from scripts import gpu_smoke, gpu_steps
from scripts.gpu_steps import Results, Step, Unit

ROOT = Path(__file__).resolve().parents[2]
MACHINE_LACKS = {"pytorch_metric_learning", "triton"}  # or may lack, so that no file of tests may need them


@pytest.fixture
def plan(monkeypatch) -> dict[str, Step]:
    monkeypatch.chdir(ROOT)
    return {step.name: step for step in gpu_steps.steps(dry=False, jobs=12)}


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


# What is planned.


def test_order_and_limits(plan):
    limits = {"check": 30, "smoke": 30, "sanitize": 60, "test": 150, "large": 40, "bench": 120}
    triton = {"triton-check": 25, "triton-sanitize": 15, "triton-test": 25, "triton-bench": 25}
    assert {name: step.seconds for name, step in plan.items()} == limits | triton
    assert list(plan) == [*limits, *triton]
    assert sum(triton.values()) == 90
    assert sum(step.seconds for step in plan.values()) <= 9 * 60 - 20  # which is left for what comes before


def test_each_native_operation_is_a_process(plan):
    machine, *checks = plan["check"].units
    assert machine.name == "machine"
    assert [unit.command[-1] for unit in checks] == [case.name for case in CASES]
    assert all(unit.command[-5:-1] == ["--backend", "native", "--device", "cuda"] for unit in checks)


def test_parts_hold_every_smoke_call(plan):
    *parts, kernels = plan["smoke"].units
    found = []
    for unit in parts:
        chosen = gpu_smoke.part(unit.command[-1])
        found += [name for name, _ in list(gpu_smoke.calls("cuda", only_run=False))[chosen]]
    assert sorted(found) == sorted(name for name, _ in gpu_smoke.calls("cuda", only_run=False))
    for name in smoke.CALLS:
        assert f"compared {name} float32" in found
    assert {f"mirrored {rows} bfloat16" for rows in (4097, 4224, 4480)} <= set(found)
    assert {f"wide {width} float32" for width in (512, 2048)} <= set(found)
    assert "--kernels" in kernels.command


@pytest.mark.parametrize("step, tools", [("sanitize", ("memcheck", "racecheck")), ("triton-sanitize", ("memcheck",))])
def test_sanitizers_see_all_parts(plan, step, tools):
    units = plan[step].units
    for tool in tools:
        of_tool = [unit for unit in units if unit.name.startswith(tool)]
        assert all(unit.command[:3] == ["compute-sanitizer", "--tool", tool] for unit in of_tool)
        assert [unit.command[-1] for unit in of_tool] == [
            f"{k}/{gpu_steps.PARTS}" for k in range(1, gpu_steps.PARTS + 1)
        ]
    assert len(units) == len(tools) * gpu_steps.PARTS
    assert plan[step].environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_every_file_of_tests_is_a_process(plan):
    files = {path for folder in ("ops", "losses") for path in Path("tests", folder).glob("test_*.py")}
    run = [
        Path(word) for step in ("test", "large") for unit in plan[step].units for word in unit.command if ".py" in word
    ]
    assert len(run) == len(set(run))
    assert set(run) == files
    assert plan["large"].units[0].name == "test_large"
    assert set(gpu_steps.triton_tests()) <= files


def test_files_do_not_share_a_name(plan):
    for step in plan.values():
        assert len({unit.file for unit in step.units}) == len(step.units)


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/*/test_*.py")), ids=lambda path: path.stem)
def test_tests_are_collected_without_what_the_machine_lacks(path):
    """An import at the top that fails would take the whole file, and the session, with it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names}.isdisjoint(MACHINE_LACKS)


# What happens.


def perform(step: Step, results: Results, again: bool = False) -> dict[str, int | None]:
    gpu_steps.perform(step, results, again)
    return {name: ended["code"] for name, ended in results.ended[step.name].items()}


HANGS = """
import signal, sys, time
{ignore}
path = sys.argv[1]
open(path, "w").write("first")
try:
    time.sleep(60)
except KeyboardInterrupt:
    open(path, "w").write("first and what was there")
"""


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(gpu_steps, "GRACE", 1.0)


def test_a_step_that_hangs_is_cut_and_its_results_are_kept(tmp_path, short):
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    units = [
        Unit("quick", python("print('done')")),
        Unit("hangs", [*python(HANGS.format(ignore="")), "{out}.json"]),
        Unit("ignores", [*python(HANGS.format(ignore=ignore)), "{out}.json"]),
        Unit("waits", python("print('never')")),
    ]
    results, began = Results(tmp_path), time.monotonic()
    # The first of the two that are begun is done at once, and makes place for the third.
    assert perform(Step("step", 4, units, jobs=2), results) == {
        "quick": 0, "hangs": None, "ignores": None, "waits": None,
    }  # fmt: skip
    assert 2.5 < time.monotonic() - began < 6
    assert (tmp_path / "step" / "quick.log").read_text() == "done\n"
    assert (tmp_path / "step" / "hangs.json").read_text() == "first and what was there"
    assert (tmp_path / "step" / "ignores.json").read_text() == "first"
    assert not (tmp_path / "step" / "waits.log").exists()


def test_what_fails_or_crashes_is_its_own_affair(tmp_path, short):
    units = [Unit("fails", python("raise SystemExit(3)")), Unit("crashes", python("import os; os.abort()"))]
    codes = perform(Step("first", 20, [*units, Unit("passes", python("pass"))]), Results(tmp_path))
    assert codes == {"fails": 3, "crashes": -signal.SIGABRT, "passes": 0}
    assert Results(tmp_path).ended["first"]["crashes"]["passed"] is False


def test_again_runs_what_has_not_passed(tmp_path, short):
    count = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.open('a').write('x'); sys.exit({})"
    units = [Unit(name, [*python(count.format(code)), "{out}.txt"]) for name, code in (("good", 0), ("bad", 1))]
    units.append(Unit("empty", [*python(count.format(5)), "{out}.txt"], good=(0, 5)))
    perform(Step("step", 20, units), Results(tmp_path))
    perform(Step("step", 20, units), Results(tmp_path), again=True)
    runs = {path.stem: len(path.read_text()) for path in (tmp_path / "step").glob("*.txt")}
    assert runs == {"good": 1, "bad": 2, "empty": 1}


def test_a_second_try(tmp_path, short):
    """Of the benchmark, which goes on after the row that crashed it."""
    program = "import os, sys; there = os.path.exists(sys.argv[1]); open(sys.argv[1], 'w'); sys.exit(not there)"
    unit = Unit("cases", [*python(program), "{out}.json"], tries=3)
    assert perform(Step("bench", 20, [unit]), Results(tmp_path)) == {"cases": 0}
    always = unit._replace(name="other", command=python("raise SystemExit(1)"))
    assert perform(Step("bench", 20, [always]), Results(tmp_path))["other"] == 1


def test_the_tar_is_whole_and_small(tmp_path, monkeypatch):
    results = Results(tmp_path / "results")
    unit = Unit("unit", python("print('x' * 300_000)"))
    gpu_steps.perform(Step("step", 20, [unit]), results, again=False)
    (tmp_path / "results" / "step" / "unit.xml").write_text("<testsuites/>")

    def packed() -> dict[str, int]:
        results.pack(tmp_path / "gpu.tar.xz")
        with tarfile.open(tmp_path / "gpu.tar.xz") as tar:
            return {entry.name: entry.size for entry in tar}

    whole = packed()
    assert set(whole) == {"steps.json", "step/unit.log", "step/unit.xml"}
    assert whole["step/unit.log"] == gpu_steps.LONGEST_LOG
    monkeypatch.setattr(gpu_steps, "LARGEST_TAR", 0)
    assert packed()["step/unit.log"] == 0
    assert json.loads((tmp_path / "results" / "steps.json").read_text())["step"]["unit"]["code"] == 0


def test_whoever_ends_it_has_the_results_so_far(tmp_path):
    program = f"""
import sys
from scripts import gpu_steps as g
quick = g.Unit("quick", [sys.executable, "-c", "pass"])
slow = g.Unit("slow", [sys.executable, "-c", "import time; time.sleep(60)"])
g.steps = lambda dry, jobs: [g.Step("one", 30, [quick]), g.Step("two", 60, [quick, slow])]
sys.argv = ["gpu_steps", {str(tmp_path / "results")!r}]
raise SystemExit(g.main())
"""
    process = subprocess.Popen(python(program), cwd=ROOT, env=os.environ | {"OUT": str(tmp_path)}, text=True)
    index = tmp_path / "results" / "steps.json"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (index.exists() and "two" in json.loads(index.read_text())):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) != 0
    with tarfile.open(tmp_path / "gpu.tar.xz") as tar:
        ended = json.load(tar.extractfile("steps.json"))
    assert ended["one"]["quick"]["code"] == ended["two"]["quick"]["code"] == 0
    assert ended["two"]["slow"]["code"] is None


# The script that begins it.


def script(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu.sh", folder / "scripts")
    return subprocess.run(
        ["bash", "scripts/gpu.sh"],
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "environment, words",
    [({}, "torch sees no GPU here; DRY=1 shows how far it goes"), ({"DRY": "1"}, "there is no wheel in ")],
)
def test_what_is_missing_is_said(environment, words, tmp_path):
    done = script(tmp_path, **environment)
    assert done.returncode == 2
    assert words in done.stderr
