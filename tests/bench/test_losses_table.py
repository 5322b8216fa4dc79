"""bench/studies/losses.py: that it trains every loss, goes on where it stopped, and the tables of docs/losses.md."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from bench.report import losses as table
from bench.report.tables import ROOT
from bench.studies import losses as script
from dmlkernels.data import load
from dmlkernels.train import losses
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.job import Job

STEPS = 2


def test_every_loss_has_a_row() -> None:
    rows = table.ROWS
    assert {row.settings["loss"] for row in rows} == set(losses.LOSSES)
    assert len({row.name for row in rows}) == len({row.command for row in rows}) == len(rows)
    configs = [script.configuration(row) for row in rows]
    own = {"loss", "loss_options", "easy_positive", "memory"}
    shared = [{k: v for k, v in dataclasses.asdict(config).items() if k not in own} for config in configs]
    assert all(other == shared[0] for other in shared)
    assert all(config.memory in (0, script.TIMED_ROWS) for config in configs)
    for row in rows:
        assert re.match(r"(for|if|as|where) .*[^.]$", row.choose)


def test_a_stopped_series_goes_on_and_repeats_nothing(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for row in table.ROWS if row.settings["loss"] in ("ranked_list", "soft_triple")]
    monkeypatch.setattr(table, "ROWS", rows)
    monkeypatch.setattr(script, "load", lambda *_, **__: load(f"npz:{npz}"))
    small = {"data": f"npz:{npz}", "batch": 16, "samples_per_class": 4}
    configuration = script.configuration

    def tiny(row: object, **others: object) -> TrainConfig:
        return dataclasses.replace(configuration(row, **others), **small)

    monkeypatch.setattr(script, "configuration", tiny)
    train_step, steps = Job.train_step, []

    def counted(self: Job, indices: list[int]) -> None:
        if len(steps) == stop:
            raise KeyboardInterrupt
        steps.append(self.config.loss)
        train_step(self, indices)

    monkeypatch.setattr(Job, "train_step", counted)
    out, words = tmp_path / "losses.json", ["--steps", str(STEPS), "--folder", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["losses.py", *words, "--out", str(out)])
    stop = STEPS + 1
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert list(json.loads(out.read_text())["runs"]) == [rows[0].name]
    stop = 100
    assert script.main() == 0
    # The second row was interrupted before its first checkpoint, and its steps are done again.
    assert len(steps) == STEPS * len(rows) + 1
    first = json.loads(out.read_text())
    assert script.main() == 0
    assert len(steps) == STEPS * len(rows) + 1
    assert json.loads(out.read_text())["runs"] == first["runs"]
    runs = first["runs"]
    assert list(runs) == [row.name for row in rows]
    assert len({json.dumps(run["evaluations"][0]) for run in runs.values()}) == 1  # one untrained network
    assert all(run["step_time"] > 0 and run["seconds"] > 0 for run in runs.values())
    assert [run["config"]["memory"] for run in runs.values()] == [0, script.TIMED_ROWS, 0]


def test_the_document_has_every_loss() -> None:
    text = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    for name, entry in losses.LOSSES.items():
        assert re.search(rf"^\| `{name}` +\| `{entry.module}` +\|", text, re.MULTILINE)


def test_tables() -> None:
    untrained = {"recall_at_1": 0.3, "map_at_r": 0.2, "effective_rank": 50.0}
    recalls = [0.5 + 0.01 * place for place in range(len(table.ROWS))]
    config = {"seed": 0, "steps": 9, "batch": 256, "samples_per_class": 8, "lr": 0.01, "features": 128}
    sizes = {"config": config, "train_classes": 1044, "test_images": 12816, "test_classes": 1045}
    machine = dict.fromkeys(("cpu", "cores", "threads", "memory_gb", "isa", "torch", "dmlkernels", "commit", "load"), 1)
    results = {"machine": machine, "rows": 2048, "runs": {}}
    for row, recall in zip(table.ROWS, recalls, strict=True):
        last = {"recall_at_1": recall, "map_at_r": 0.1, "effective_rank": 10 * recall}
        run = {"evaluations": [untrained, last], "step_time": 0.01 * (1 + len(results["runs"])), **sizes}
        results["runs"][row.name] = run
    lines = table.rows(results).splitlines()
    assert len(lines) == 2 + len(table.ROWS) + 1
    assert lines[2].split("|")[1].strip() == f"`{table.ROWS[-1].command}`"  # the best first
    assert lines[2].split("|")[2:-1] == [" 0.650 ", " 0.100 ", " 6.5            ", " 160 ms    "]
    assert lines[-1].split("|")[1].strip() == "untrained network"
    sentences = table.choice(results).splitlines()
    assert len(sentences) == len(table.ROWS)
    for row, sentence in zip(table.ROWS, sentences, strict=True):
        assert sentence.startswith(f"- `{row.command}`: {row.choose}; here ")
    assert "here R@1 0.15 below the best, effective rank 16 of 16, the cheapest step." in sentences[0]
    assert "here R@1 within 0.02 of the best, effective rank 2 of 16" in sentences[-2]
    assert "here the best R@1, effective rank 1 of 16, a step of 16.0 times the cheapest." in sentences[-1]
    assert "12,816 images of 1,045 others" in table.settings(results)
    commands = {row.name: row.command for row in table.ROWS}
    assert commands["ranked_list-memory"] == "--loss ranked_list --memory 2048"
    assert commands["triplet-easy-semihard"] == "--loss triplet --easy-positive --negative semihard"
