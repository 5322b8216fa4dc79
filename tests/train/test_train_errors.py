"""What stops a training job: one sentence on the command line, and no half-written result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.jobs import command, image_file, metrics_of, quick_run

from dmlkernels import _backend
from dmlkernels.train import pictures
from dmlkernels.train.config import JobError, write_atomically


def bad_folder(root: Path, kind: str) -> Path:
    if kind == "empty":
        root.mkdir()
        return root
    for number, name in enumerate(("a", "b", "c", "d")):
        for copy in range(1 if (kind, name) == ("single", "b") else 2):
            image_file(root / name / f"{copy}.png", 2 * number + copy)
    if kind == "broken":
        (root / "c" / "1.png").write_bytes(b"not an image")
    if kind == "cut":  # the header is whole, so that only decoding finds it
        whole = (root / "a" / "0.png").read_bytes()
        (root / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    return root


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "kind, words, sentence",
    [
        ("missing", (), "does not exist"),
        ("empty", (), "sub-folders"),
        ("single", (), "has 1 image"),
        ("broken", (), "1.png"),
        ("cut", ("--samples-per-class", 2), "0.png"),
        ("good", ("--batch", 64), "larger than the training data"),
        ("good", ("--batch", 4, "--samples-per-class", 3), "a batch of 4"),
        ("good", ("--samples-per-class", 1), "two classes"),
        ("good", ("--samples-per-class", 2, "--model", "large"), "--model large: expected small or timm:NAME"),
        (
            "good",
            ("--samples-per-class", 2, "--loss", "triplet", "--alpha", 1.2),
            "--loss triplet has no option --alpha",
        ),
        ("good", ("--samples-per-class", 2, "--negative", "hard"), "--loss ranked_list has no option --negative"),
        ("good", ("--samples-per-class", 2, "--epoch-steps", 2, "--lr", "1e38"), "the loss became nan at step 2"),
        ("good", ("--samples-per-class", 2, "--epoch-steps", 1, "--lr", "1e38"), "not finite after step 1"),
        ("good", ("--resume",), "holds no checkpoint.pt"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: tuple, sentence: str
) -> None:
    root, out = tmp_path / "images", tmp_path / "out"
    if kind != "missing":
        bad_folder(root, kind)
    assert command("train", "--data", f"folder:{root}", "--steps", 2, "--image-size", 8, "--out", out, *words) == 2
    printed = capsys.readouterr()
    message = [line for line in printed.err.splitlines() if not line.startswith("step ")]
    assert len(message) == 1
    assert message[0].startswith("dmlkernels: ")
    assert sentence in message[0]
    assert not printed.out
    assert not out.exists()


def test_unknown_data_missing_data_and_a_folder_that_is_a_file(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train", "--data", "birds", "--out", tmp_path / "out") == 2
    assert "birds" in capsys.readouterr().err
    assert command("train", "--out", tmp_path / "out") == 2
    assert "--data glyphs" in capsys.readouterr().err
    (tmp_path / "out").write_text("mine")
    assert quick_run(npz, tmp_path / "out") == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda_device_is_one_sentence(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quick_run(npz, tmp_path / "out", "--device", "cuda") == 2
    assert "sees no CUDA device" in capsys.readouterr().err


@pytest.mark.usefixtures("cheap")
def test_an_error_at_the_end_leaves_no_half_written_result(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert quick_run(npz, out) == 0
    assert metrics_of(out)

    def fail(part: Path, *_: object) -> None:
        part.write_bytes(b"half a pict")
        raise JobError("no space left")

    monkeypatch.setattr(pictures, "neighbors", lambda path, *_: write_atomically(path, fail))
    assert quick_run(npz, out) == 2
    assert "no space left" in capsys.readouterr().err
    # The earlier run's results are gone, its successor's are whole, and metrics.json, written last, is absent.
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "curves.png", "spectrum.png"}


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_a_missing_package_is_named_before_anything_is_written(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert quick_run(npz, tmp_path / "out") == 2
    assert f"{package} is missing: run `pip install dmlkernels[train]`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_backend_that_is_not_here(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(_backend.loaded, "triton", set())
    assert quick_run(npz, tmp_path / "out", "--backend", "triton") == 2
    assert 'backend "triton" is not available' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
