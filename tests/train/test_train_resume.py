"""A training job that was interrupted goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.jobs import command, metrics_of, quick_run, same_numbers

from dmlkernels.train import checkpoint, job


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("stop_after", [3, 4])  # inside an epoch of two steps, and right at the end of one
def test_interrupted_and_resumed_equals_uninterrupted(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop_after: int
) -> None:
    words = ("--steps", 5, "--epoch-steps", 2, "--easy-positive", "--merge-classes", 2, "--batch", 16)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert quick_run(npz, whole, *words) == 0
    train_step = job.Job.train_step

    def interrupted(self: job.Job, indices: list[int]) -> None:
        if self.state.progress.step == stop_after:
            raise KeyboardInterrupt
        train_step(self, indices)

    monkeypatch.setattr(job.Job, "train_step", interrupted)
    assert quick_run(npz, parts, *words) == 130
    assert "--resume" in capsys.readouterr().err
    assert {path.name for path in parts.iterdir()} == {"checkpoint.pt"}
    monkeypatch.setattr(job.Job, "train_step", train_step)
    torch.manual_seed(12345)  # what the process drew before must not matter
    assert command("train", "--resume", parts) == 0
    same_numbers(metrics_of(whole), metrics_of(parts))
    expected, resumed = checkpoint.read(whole)["model"], checkpoint.read(parts)["model"]
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.usefixtures("no_pictures")
def test_resume_takes_its_settings_from_the_run(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick_run(npz, tmp_path / "run", "--lr", 1e-3) == 0
    before = metrics_of(tmp_path / "run")
    assert command("train", "--resume", "--out", tmp_path / "run", "--lr", 1e-3) == 0
    same_numbers(before, metrics_of(tmp_path / "run"))
    capsys.readouterr()
    assert command("train", "--resume", tmp_path / "run", "--lr", 1e-2) == 2
    assert "--lr 0.01: the run in" in capsys.readouterr().err
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"nonsense")
    assert command("train", "--resume", tmp_path / "run") == 2
    assert "is not a checkpoint" in capsys.readouterr().err
