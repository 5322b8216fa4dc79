"""The benchmarks run, refuse to time what is wrong, and are the only source of the numbers in the documents."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dmlkernels
from bench.kernels import batches, cases, contenders, run, timing
from bench.report import __main__ as report
from bench.report import kernels as table
from bench.report import tables
from dmlkernels import _backend

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"

pytestmark = pytest.mark.skipif("cpu" not in _backend.loaded["native"], reason="built without a compiler")


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    before = sorted(RESULTS.glob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.kernels.run", "--quick", "--out", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(RESULTS.glob("*")) == before
    return json.loads(path.read_text(encoding="utf-8")) | {"printed": done.stdout}


@pytest.mark.full
def test_quick_run_times_every_contender_of_every_row(quick):
    assert [row["name"] for row in quick["rows"]] == [case.name for case in run.CASES]
    for row, case in zip(quick["rows"], run.CASES):
        assert set(row["contenders"]) == {"fused", *case.rivals}
        assert not case.operation.startswith("ranked_list") or 0 < row["active_pairs"] < 1
        for taken in row["contenders"].values():
            if "skipped" in taken or not case.timed:
                continue
            low, median, high = taken["total"]
            assert 0 < low <= median <= high < math.inf
            assert 0 < taken["forward"][1] <= median


def test_quick_run_measures_memory(quick):
    contenders = quick["rows"][-1]["contenders"]
    if contenders["fused"]["peak_bytes"] is None:
        pytest.skip("this system has no high-water mark that can be reset")
    assert 0 < contenders["fused"]["peak_bytes"] < contenders["reference"]["peak_bytes"]


def test_quick_run_judges_every_goal_without_peers(quick):
    named = {case.name for case in run.CASES}
    assert [goal["title"] for goal in quick["goals"]] == [goal.title for goal in run.GOALS if goal.case in named]
    judged = [goal for goal in quick["goals"] if goal["value"] is not None]
    assert len(judged) >= len(quick["goals"]) - 1
    assert all(0 < goal["low"] <= goal["value"] <= goal["high"] < math.inf for goal in judged)


def test_quick_run_prints_the_tables_of_its_results(quick):
    assert table.render_goals(quick) in quick["printed"]
    assert table.render_times(quick) in quick["printed"]


def test_machine_is_named(quick):
    machine = quick["machine"]
    assert machine["threads"] == 1
    assert machine["torch"] == torch.__version__
    assert all(machine[name] for name in ("cpu", "cores", "isa", "dmlkernels", "commit"))


@pytest.mark.parametrize(
    "rival, value, level",
    [
        ("reference", 7.9, "MISSED"),
        ("reference", 8.0, "must"),
        ("reference", 12.5, "strong"),
        ("reference", 99.0, "stretch"),
        ("product", 16.1, "MISSED"),
        ("product", 16.0, "must"),
        ("product", 12.0, "strong"),
        ("product", 1.0, "stretch"),
        (None, 17.0, "MISSED"),
        (None, 9.0, "strong"),
    ],
)
def test_goal_levels(rival, value, level):
    bounds = (8, 12, 16) if rival == "reference" else (16, 12, 8)
    assert run.Goal("", "", "total", rival, *bounds).reached(value) == level


def test_goal_ranges_take_the_quantiles_against_each_other():
    contenders = {
        "fused": {"forward": [1.0, 2.0, 4.0], "total": [2.0, 4.0, 8.0], "peak_bytes": 5_000_000},
        "reference": {"total": [40.0, 60.0, 80.0]},
        "product": {"total": [1.0, 2.0, 4.0]},
    }

    def judged(part: str, rival: str | None) -> list[float]:
        goal = run.Goal("", "", part, rival, 1, 1, 1).judged(contenders)
        return [goal[key] for key in ("low", "value", "high")]

    assert judged("total", "reference") == [5.0, 15.0, 40.0]
    assert judged("total", "product") == [0.5, 2.0, 8.0]
    assert judged("forward", "product") == [0.25, 1.0, 4.0]
    assert judged("peak_bytes", None) == [5.0, 5.0, 5.0]
    assert run.Goal("", "", "total", "peer", 1, 1, 1).judged(contenders)["met"] == "not measured"


def test_goals_on_a_gpu_are_of_rows_that_are_taken():
    cases = {case.name: case for case in run.cuda_cases.CASES}
    assert len(cases) == len(run.cuda_cases.CASES)
    for goal in (run.Goal(*goal) for goal in run.cuda_cases.GOALS):
        assert goal.rival in cases[goal.case].rivals
        assert goal.reached(goal.must) == "must"


def test_coarse_operands_are_judged_by_coarse_tolerances():
    case = cases.Case("tiny", "ranked_list", "dense", 512, 16)
    half, tf32 = case._replace(dtype="bfloat16"), case._replace(precision="tf32")
    assert [c.numbers for c in (case, half, tf32)] == [None, "bfloat16", "tf32"]
    assert case.coarse == 1 < tf32.coarse < half.coarse
    timing.assert_rivals_agree(half)
    with contenders.products_of(tf32):
        assert dmlkernels.get_float32_precision() == "tf32"
    assert dmlkernels.get_float32_precision() == "ieee"


@pytest.mark.parametrize("met, code", [("must", 0), ("not measured", 0), ("MISSED", 1)])
def test_missed_goal_fails_the_run(quick, met, code, monkeypatch, tmp_path, capsys):
    results = {**quick, "goals": [{**quick["goals"][0], "met": met}]}
    monkeypatch.setattr(run, "measured", lambda arguments, path: results)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path / "results.json")])
    assert run.main() == code
    assert ("missed" in capsys.readouterr().err) == (code == 1)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results


def arguments(monkeypatch, path: Path, *flags: str) -> list[str]:
    """As of a run of three rows."""
    few = tuple(case.shrunk() for case in run.CASES if case.name in ("ranked_list", "pairwise", "nearest_positive"))
    monkeypatch.setattr(run, "CASES", few)
    monkeypatch.setattr(run, "one_thread_rates", lambda *sizes: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "--quick", "--rivals", "reference", "--out", str(path), *flags])
    return [case.name for case in few]


def rows_of(path: Path) -> dict[str, bool]:
    """The rows of a file, and whether they failed."""
    return {row["name"]: run.failed(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def test_results_are_kept_after_each_row(monkeypatch, tmp_path):
    path = tmp_path / "results.json"
    names = arguments(monkeypatch, path)
    right = run.measured_row

    def interrupted(case, *others):
        if case.name == names[1]:
            raise KeyboardInterrupt
        return right(case, *others)

    monkeypatch.setattr(run, "measured_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.main()
    assert rows_of(path) == {names[0]: False}
    first = path.read_text(encoding="utf-8")

    taken: list[str] = []

    def noted(case, *others):
        taken.append(case.name)
        return right(case, *others)

    monkeypatch.setattr(run, "measured_row", noted)
    arguments(monkeypatch, path, "--again")
    assert run.main() == 0
    assert taken == names[1:]
    assert rows_of(path) == dict.fromkeys(names, False)
    kept = json.loads(first)["rows"][0]
    assert json.loads(path.read_text(encoding="utf-8"))["rows"][0] == kept
    assert set(kept["contenders"]) == {"fused", "reference"}


def test_a_row_that_fails_says_so_and_is_the_last_to_be_taken_again(monkeypatch, tmp_path, capsys):
    path = tmp_path / "results.json"
    names = arguments(monkeypatch, path)
    right, taken = run.measured_row, []

    def wrong(case, *others):
        taken.append(case.name)
        assert case.name != names[0], "fused and reference disagree"
        return right(case, *others)

    monkeypatch.setattr(run, "measured_row", wrong)
    assert run.main() == 1
    captured = capsys.readouterr()
    assert f"bench: failed: {names[0]}" in captured.err
    assert "FAILED: AssertionError: fused and reference disagree" in captured.out
    assert rows_of(path) == {name: name == names[0] for name in names}

    results = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**results, "rows": results["rows"][:2]}), encoding="utf-8")
    taken.clear()
    arguments(monkeypatch, path, "--again")
    assert run.main() == 1
    assert taken == [names[2], names[0]]


def test_launches_are_not_in_the_times_of_a_gpu(monkeypatch):
    """The GPU waits before the first mark, and nothing waits for it until the last."""
    done = []

    class Event:
        def __init__(self, enable_timing):
            self.number = None

        def record(self):
            self.number = len(done)
            done.append("mark")

        def elapsed_time(self, other):
            return 1e3 * (other.number - self.number)

    monkeypatch.setattr(timing, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append("wait"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronize"))
    taken = timing.take(lambda batch: (batch.embeddings.sum(),), batches.make_batch("dense", 64, 8), (torch.ones(()),))
    assert done == ["wait", "mark", "mark", "mark", "mark", "synchronize"]
    assert (taken.forward, taken.total) == (1.0, 2.0)


def test_what_a_row_is_about():
    """Every kind of data has its words, and who names a number of classes is told apart."""
    assert set(table.KINDS) == set(batches.SHARE)
    case = cases.Case("two", "ranked_list", "collapsed", 512, 16, classes=2)
    row = run.described(case, {}) | {"active_pairs": 0.5, "active_tiles": 1.0}
    assert table._lines(row, 3)[1] == "512 × 512 × 16, 2 classes, collapsed"


@pytest.mark.parametrize("kind", batches.SHARE)
@pytest.mark.parametrize("rows, width, gallery", [(512, 64, 0), (1024, 128, 0), (64, 64, 1024)])
def test_data_is_what_it_is_called(kind, rows, width, gallery):
    batch = batches.make_batch(kind, rows, width, gallery)
    pairs, tiles = batches.active_shares(batch)
    batches.assert_share(kind, pairs)
    assert tiles == 1 or kind == "sparse"
    assert not torch.equal(batch.labels, batch.labels.sort().values)
    assert (torch.bincount(batch.labels) == batches.PER_CLASS).all()
    wrong = "sparse" if kind in ("dense", "collapsed") else "dense"
    with pytest.raises(AssertionError, match=f"{wrong} data"):
        batches.assert_share(wrong, pairs)


WRONG = [("reference", name) for name in ("ranked_list", "nearest_positive", "mine_semihard", "triplet", "pairwise")]
WRONG += [("reference", name) for name in ("coding_rate", "class_coding_rate", "cholesky", "spherical_expansion")]
WRONG += [("reference", "proxy_anchor"), ("reference", "soft_triple")]
WRONG += [("logdet", "coding_rate"), ("mcr2_loop", "class_coding_rate")]


@pytest.mark.parametrize("rival, operation", WRONG)
@pytest.mark.parametrize("fault", ["value", "gradient", "lost row"])
def test_wrong_contender_is_not_timed(rival, operation, fault, monkeypatch):
    case = cases.Case("tiny", operation, "dense", 512, 16)
    right = contenders.contender

    def without_first_row(grad):
        return torch.cat([torch.zeros_like(grad[:1]), grad[1:]])

    def wrong(case, name):
        run = right(case, name)
        if name != "fused":
            return run
        if fault == "value":
            return lambda batch: tuple(1.001 * o if o.is_floating_point() else o for o in run(batch))
        if fault == "gradient":
            return lambda batch: tuple(1.001 * o - 0.001 * o.detach() if o.requires_grad else o for o in run(batch))
        return lambda batch: (batch.embeddings.register_hook(without_first_row), run(batch))[1]

    assert timing.measure(case, ("fused", rival), samples=1)["fused"]["samples"] == 1
    monkeypatch.setattr(timing, "contender", wrong)
    with pytest.raises(AssertionError, match=f"fused and {rival} disagree"):
        timing.measure(case, ("fused", rival), samples=1)


def test_slow_contender_is_sampled_less_and_says_so(quick, monkeypatch):
    monkeypatch.setattr(timing, "LONG", 0.0)
    monkeypatch.setattr(timing, "LONG_BUDGET", 0.0)
    case = cases.Case("tiny", "ranked_list", "dense", 64, 16)
    taken = timing.measure(case, ("fused", "reference"), samples=5)
    assert {name: t["samples"] for name, t in taken.items()} == dict.fromkeys(taken, timing.FEWEST)
    row = {**quick["rows"][0], "contenders": taken}
    assert table.render_times({**quick, "samples": 5, "rows": [row]}).count("3 runs") == 2


def test_documents_show_the_committed_results():
    assert report.stale(write=False) == []


def test_every_block_of_a_document_is_made_by_a_report():
    for name, blocks in report.DOCUMENTS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"<!-- (\S+) begin -->", text) == re.findall(r"<!-- (\S+) end -->", text)
        assert sorted(re.findall(r"<!-- (\S+) begin -->", text)) == sorted(blocks)


def test_tables_go_between_the_markers_and_nowhere_else(quick, monkeypatch, tmp_path):
    begin, end = "<!-- bench:cpu begin -->", "<!-- bench:cpu end -->"
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "DOCUMENTS", {"README.md": report.DOCUMENTS["README.md"]})
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    assert report.stale(write=True) == ["README.md"]
    assert readme.read_text(encoding="utf-8") == f"before\n{begin}\n{end}\nafter\n"

    tables.write_json(tmp_path / "results" / "cpu-x-1t.json", quick)
    assert report.stale(write=False) == ["README.md"]
    assert report.stale(write=True) == ["README.md"]
    assert report.stale(write=False) == []
    written = readme.read_text(encoding="utf-8")
    assert written == f"before\n{begin}\n{table.summaries([quick])}\n{end}\nafter\n"
    assert written.startswith(f"before\n{begin}\n{table.render_machine(quick)}\n\n{table.render_goals(quick)}\n")


def test_results_are_json_of_short_lines(tmp_path):
    results = {"rows": [{"name": "é" * 300, "times": [1.5] * 200}, {}], "none": None, "goals": []}
    path = tmp_path / "new" / "results.json"
    tables.write_json(path, results)
    text = path.read_text(encoding="utf-8")
    assert tables.read_json(path) == results
    assert text.endswith("}\n")
    assert all(len(line) <= tables.LINE for line in text.splitlines() if "times" not in line)
    assert '\n "none": null,\n' in text
