"""bench/studies/methods.py: what it trains, that it goes on where it stopped, and the tables of docs/methods.md."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from bench.report import methods as table
from bench.studies import methods as studied
from dmlkernels.data import load
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.job import Job
from dmlkernels.train.rows import ROWS

FINE = [row.name for row in ROWS if not row.merged]


@pytest.fixture
def methods(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(studied.table, "FILE", tmp_path / "methods.json")
    return studied


def test_what_is_trained(methods: ModuleType) -> None:
    runs = list(methods.runs())
    assert len({(run.group, run.name) for run in runs}) == len(runs)
    assert next(run.group for run in runs) == "validation"  # what settings are chosen with comes first
    # Only what chooses settings looks at training classes; all else tests on the test classes.
    assert all(run.config.validate == (run.group == "validation") for run in runs)
    for group, names, seeds in (("rows", [row.name for row in ROWS], 3), ("features", FINE, 1), ("noise", FINE, 3)):
        found = Counter(run.name.partition(",")[0] for run in runs if run.group == group)
        assert found == dict.fromkeys(names, seeds)
    for run in runs:
        assert run.config.steps == (450 if run.config.loss == "proxy_anchor" else 150)


def tiny_runs(methods: ModuleType, npz: Path) -> list:
    names = {"a, seed 0": {}, "b, seed 0": {"loss": "proxy_anchor", "anti_collapse": {}}}
    shared = {"data": f"npz:{npz}", "batch": 16, "samples_per_class": 4, "steps": 4, "epoch_steps": 2}
    return [methods.Run("rows", name, TrainConfig(**shared, **settings)) for name, settings in names.items()]


def test_a_stopped_series_goes_on_and_repeats_nothing(
    methods: ModuleType, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = tiny_runs(methods, npz)
    monkeypatch.setattr(methods, "runs", lambda: iter(series))
    monkeypatch.setattr(methods, "load", lambda *_, **__: load(f"npz:{npz}"))
    train_step = Job.train_step
    steps: list[str] = []

    def counted(self: Job, indices: list[int], stop_at: int = 100) -> None:
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        steps.append(self.config.loss)
        train_step(self, indices)

    results = []
    for name, stops in (("whole", (100,)), ("parts", (7, 100, 100))):
        monkeypatch.setattr(sys, "argv", ["methods.py", "--folder", str(tmp_path / name)])
        for stop in stops:
            steps.clear()
            monkeypatch.setattr(Job, "train_step", lambda self, indices, stop=stop: counted(self, indices, stop))
            if stop == 7:  # inside the second epoch of the second run
                with pytest.raises(KeyboardInterrupt):
                    methods.main()
            else:
                assert methods.main() == 0
        results.append(json.loads((tmp_path / "methods.json").read_text()))
    assert not steps  # the third call found both runs done
    assert results[0] == results[1]
    changed = [dataclasses.replace(run, config=dataclasses.replace(run.config, lr=1e-3)) for run in series]
    monkeypatch.setattr(methods, "runs", lambda: iter(changed))
    assert methods.main() == 0
    assert len(steps) == 8  # other settings are other runs
    whole = results[0]["runs"]["rows"]
    assert list(whole) == ["a, seed 0", "b, seed 0"]
    assert whole["a, seed 0"]["evaluations"][0] == whole["b, seed 0"]["evaluations"][0]
    assert [found["step"] for found in whole["b, seed 0"]["evaluations"]] == [0, 2, 4]


def test_tables_say_mean_and_deviation() -> None:
    assert table._spread([0.5, 0.6, 0.7], 3) == "0.600 ± 0.100"
    assert table._spread([0.01, 0.03], 3, "+") == "+0.020 ± 0.014"
    assert table._spread([0.5], 1) == "0.5"
    run = {"evaluations": [dict.fromkeys((*table.METRICS, "coding_rate"), 1.0)] * 4}
    rows = {f"{row.name}, seed {seed}": run for row in ROWS for seed in range(3)}
    lines = table.rows({"rows": rows}).splitlines()
    assert len(lines) == 2 + len(ROWS) + 1
    assert lines[3].startswith("| RLL + Anti-Collapse")
    assert "4 classes merged" in lines[7]
    assert "0 of 3 seeds" in table.claims({"rows": rows})
    assert table.training({"rows": rows}).splitlines()[0].split("|")[3:-1] == [
        " untrained ",
        " 1/3 of the steps ",
        " 2/3 of the steps ",
        " trained ",
    ]
    beside = table._beside({"rows": rows, "noise": {"rll, seed 0": run}}, "noise", ("clean", "wrong")).splitlines()
    assert beside[0] == "Seeds: 1."
    assert len(beside) == 5
