"""The training job and the demo, on data sets of a few tiny images."""

from __future__ import annotations

import argparse
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dmlkernels
from dmlkernels import _backend
from dmlkernels.train import checkpoint, cli, job, losses, measure, model, optimizer, pictures, report
from dmlkernels.train.augment import Augment
from dmlkernels.train.config import JobError, TrainConfig, write_atomically

PICTURES = ("curves.png", "spectrum.png", "neighbors.png")
COST = {"step_time": 0.01, "peak_extra_bytes": 1 << 20}
TIMES = ("seconds_training", "step_time_fused", "step_time_reference", "versions", "config")


def command(*words: object) -> int:
    """``python -m dmlkernels WORDS`` without the process around it."""
    parser = argparse.ArgumentParser()
    cli.add_parsers(parser.add_subparsers(required=True))
    args = parser.parse_args([str(word) for word in words])
    return args.run(args)


def tiny_images(classes: int = 16, per_class: int = 6, side: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Noisy copies of one random picture for each class."""
    rng = np.random.default_rng(0)
    patterns = rng.uniform(0, 200, (classes, 1, side, side))
    images = patterns + rng.uniform(0, 55, (classes, per_class, side, side))
    return images.reshape(-1, side, side).astype(np.uint8), np.repeat(np.arange(classes), per_class)


def image_file(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    images, labels = tiny_images()
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the child process that measures the loss; one test runs it."""
    monkeypatch.setattr(
        measure, "compare_backends", lambda loss, embeddings, labels, backends, device: dict.fromkeys(backends, COST)
    )


@pytest.fixture
def no_pictures(cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures too, where a test is about numbers."""
    for name in PICTURES:
        monkeypatch.setattr(pictures, name.removesuffix(".png"), lambda *_: None)


def quick_run(npz: Path, out: Path, *words: object) -> int:
    base = ("train", "--data", f"npz:{npz}", "--batch", 32, "--samples-per-class", 4, "--out", out)
    return command(*base, *(() if "--steps" in words else ("--steps", 3)), *words)


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def assert_picture(path: Path) -> None:
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_full_run(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs" / "one"
    assert quick_run(npz, out, "--epoch-steps", 2, "--seed", 5) == 0
    files = {path.name for path in out.iterdir()}
    assert files == {*PICTURES, "metrics.json", "checkpoint.pt"}
    for name in PICTURES:
        assert_picture(out / name)
    result = metrics_of(out)
    for name in ("recall_at_1", "recall_at_2", "recall_at_4", "map_at_r"):
        assert 0.0 <= result[f"{name}_before"] <= 1.0
        assert 0.0 <= result[f"{name}_after"] <= 1.0
    assert 1.0 <= result["effective_rank"] <= 128
    assert result["effective_rank"] == result["effective_rank_after"]
    assert result["step_time_fused"] > 0
    assert result["step_time_reference"] > 0
    for backend in ("fused", "reference"):
        peak = result[f"peak_extra_bytes_{backend}"]
        assert peak is None or 0 <= peak < 1 << 30
    assert result["seed"] == result["config"]["seed"] == 5
    assert result["versions"]["torch"] == torch.__version__
    assert [step for step, _ in result["history"]["recall_at_1"]] == [0, 2, 3]
    assert len(result["history"]["loss"]) == 3
    printed = capsys.readouterr()
    for words in ("R@1", "R@2", "R@4", "MAP@R", "before training", "after training", "peak extra memory", "8 others"):
        assert words in printed.out
    assert "step 2/3" in printed.err
    assert "images/s" in printed.err


def same_numbers(left: dict, right: dict) -> None:
    for name in left.keys() - set(TIMES):
        assert left[name] == right[name], name


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


@pytest.mark.usefixtures("no_pictures")
def test_same_seed_same_numbers_other_seed_other_numbers(npz: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert quick_run(npz, tmp_path / name, "--seed", seed) == 0
    same_numbers(metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b"))
    assert metrics_of(tmp_path / "a")["history"]["loss"] != metrics_of(tmp_path / "c")["history"]["loss"]


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


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "words, expected",
    [
        (("--loss", "triplet"), {"positive": "hard", "negative": "semihard", "margin": 0.2}),
        (
            ("--loss", "triplet", "--easy-positive", "--negative", "hard"),
            {"positive": "easy", "negative": "hard", "margin": 0.2},
        ),
        (
            ("--loss", "triplet", "--soft", "--margin", 0.1),
            {"positive": "hard", "negative": "semihard", "soft": True, "margin": 0.1},
        ),
        (("--easy-positive",), {"positive": "easy", "margin": 0.8}),
        (("--easy-positive", "--margin", 0.5, "--alpha", 1.1), {"positive": "easy", "margin": 0.5, "alpha": 1.1}),
        (("--neg-temperature", 5, "--form", "cvpr"), {"neg_temperature": 5.0, "form": "cvpr"}),
    ],
)
def test_loss_options_reach_the_loss(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple, expected: dict
) -> None:
    given: dict = {}
    constructor = getattr(dmlkernels.losses, losses.LOSSES["triplet" if "triplet" in words else "ranked_list"].module)
    original = constructor.__init__

    @functools.wraps(original)
    def spy(self: nn.Module, **arguments: object) -> None:
        given.update(arguments)
        original(self, **arguments)

    monkeypatch.setattr(constructor, "__init__", spy)
    assert quick_run(npz, tmp_path / "out", "--steps", 1, *words) == 0
    assert given == expected
    assert math.isfinite(metrics_of(tmp_path / "out")["history"]["loss"][0])


def test_a_loss_with_proxies_gets_its_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxies(nn.Module):
        def __init__(self, num_classes: int, embedding_size: int, margin: float = 0.1) -> None:
            super().__init__()
            self.proxies = nn.Parameter(torch.zeros(num_classes, embedding_size))
            self.margin = margin

    monkeypatch.setattr(dmlkernels.losses, "Proxies", Proxies, raising=False)
    monkeypatch.setitem(losses.LOSSES, "proxies", losses.LossEntry("Proxies"))
    loss = losses.build("proxies", {"margin": 0.3}, easy_positive=False, num_classes=5, embedding_size=7)
    assert loss.proxies.shape == (5, 7)
    assert loss.margin == 0.3
    with pytest.raises(JobError, match="--easy-positive"):
        losses.build("proxies", {}, easy_positive=True, num_classes=5, embedding_size=7)


@pytest.mark.usefixtures("no_pictures")
def test_merged_labels_train_and_single_classes_test(npz: Path, tmp_path: Path) -> None:
    assert quick_run(npz, tmp_path / "out", "--merge-classes", 3, "--batch", 12) == 0
    result = metrics_of(tmp_path / "out")
    assert (result["train_classes"], result["test_classes"]) == (3, 8)


@pytest.mark.usefixtures("no_pictures")
def test_copies_of_an_image_share_an_id(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor | None] = []
    forward = dmlkernels.losses.RankedListLoss.forward

    def spy(self: nn.Module, embeddings: torch.Tensor, labels: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        seen.append(options.get("ids"))
        return forward(self, embeddings, labels, **options)

    monkeypatch.setattr(dmlkernels.losses.RankedListLoss, "forward", spy)
    assert quick_run(npz, tmp_path / "few", "--samples-per-class", 8, "--steps", 1) == 0
    ids = seen[-1]
    assert ids is not None
    assert len(ids) == 32
    assert len(ids.unique()) == 24  # six images in a class
    assert quick_run(npz, tmp_path / "enough", "--steps", 1) == 0
    assert seen[-1] is None


@pytest.mark.usefixtures("cheap")
def test_a_separate_gallery(tmp_path: Path) -> None:
    rows = []
    for person in range(8):
        for number in range(4):
            name = f"img/{person}_{number}.png"
            image_file(tmp_path / name, 10 * person + number)
            status = "train" if person < 4 else ("query" if number < 2 else "gallery")
            rows.append(f"{name} id_{person:08d} {status}")
    header = f"{len(rows)}\nimage_name item_id evaluation_status\n"
    (tmp_path / "list_eval_partition.txt").write_text(header + "\n".join(rows) + "\n")
    words = ("--samples-per-class", 4, "--image-size", 8, "--steps", 2, "--flip")
    assert command("train", "--data", f"inshop:{tmp_path}", "--out", tmp_path / "out", *words) == 0
    result = metrics_of(tmp_path / "out")
    assert (result["batch"], result["test_images"]) == (16, 8)  # without --batch: all classes
    assert_picture(tmp_path / "out" / "neighbors.png")


@pytest.mark.usefixtures("cheap")
def test_timm_networks(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Backbone(nn.Module):
        num_features = 5
        pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}  # noqa: RUF012

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.layer = nn.Conv2d(channels, 5, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images).mean((2, 3))

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        if name != "tiny":
            raise RuntimeError(f"Unknown model ({name})")
        assert (pretrained, num_classes) == (False, 0)
        return Backbone(in_chans)

    monkeypatch.setitem(__import__("sys").modules, "timm", SimpleNamespace(create_model=create_model))
    assert quick_run(npz, tmp_path / "out", "--model", "timm:tiny") == 0
    assert model.build("timm:tiny", 3, 16).mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    with pytest.raises(JobError, match="--model timm:other: Unknown model"):
        model.build("timm:other", 3, 16)
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(JobError, match="pip install timm"):
        model.build("timm:tiny", 3, 16)


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


def test_augmentation_moves_each_image_on_its_own_and_repeats_with_its_generator() -> None:
    images = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(6, 2, 16, 16)
    moved = Augment(flip=True)(images, torch.Generator().manual_seed(3))
    assert torch.equal(moved, Augment(flip=True)(images, torch.Generator().manual_seed(3)))
    assert moved.shape == images.shape
    assert all(not torch.equal(moved[0], other) for other in moved[1:])


def test_augmentation_by_nothing_is_the_identity_and_mirrors_are_exact() -> None:
    images = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    still = {"degrees": 0.0, "scale": 0.0, "shear": 0.0, "shift": 0.0, "noise": 0.0}
    torch.testing.assert_close(Augment(**still)(images, torch.Generator()), images)
    mirrored = Augment(**still, flip=True)(images, torch.Generator().manual_seed(0))
    same = [bool(torch.isclose(one, other, atol=1e-5).all()) for one, other in zip(images, mirrored, strict=True)]
    turned = [
        bool(torch.isclose(one.flip(-1), other, atol=1e-5).all()) for one, other in zip(images, mirrored, strict=True)
    ]
    assert all(a != b for a, b in zip(same, turned, strict=True))
    assert 4 < sum(turned) < 28


def test_one_cycle_rises_falls_and_survives_one_step() -> None:
    factor = optimizer.one_cycle(100)
    assert factor(0) == pytest.approx(0.04)
    assert factor(30) == pytest.approx(1.0)
    assert factor(100) == pytest.approx(1e-3)
    assert max(factor(step) for step in range(100)) == pytest.approx(1.0)
    assert 0 < optimizer.one_cycle(1)(0) <= 1


def test_peak_memory_counts_what_was_freed_again() -> None:
    size = 96 << 20

    def take() -> None:
        kept = torch.ones(size // 8)  # half of it lives on, the other half only beside it
        _ = torch.ones(size // 8)
        del kept

    peak = measure.peak_extra_bytes(take, take)
    if not Path("/proc/self/clear_refs").exists():
        assert peak is None
        return
    assert peak is not None
    assert 0.98 * size < peak < 1.1 * size
    nothing = measure.peak_extra_bytes(lambda: None)
    assert nothing is not None
    assert nothing < 4 << 20


def test_peak_memory_is_none_where_the_system_has_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(field: str) -> int:
        raise FileNotFoundError(field)

    monkeypatch.setattr(measure, "_status", missing)
    assert measure.peak_extra_bytes(lambda: None) is None
    result = {"config": {"validate": False}, "seed": 0, "wrong_labels": 0} | dict.fromkeys(
        ("train_images", "train_classes", "test_images"), 1
    )
    result |= {"test_classes": 1, "batch": 8, "seconds_training": 1.0, "fused_kernels": False}
    result |= {f"{name}_{when}": 0.5 for name in ("map_at_r", "effective_rank") for when in ("before", "after")}
    result |= {f"recall_at_{k}_{when}": 0.5 for k in (1, 2, 4) for when in ("before", "after")}
    for backend in ("fused", "reference"):
        result |= {f"step_time_{backend}": 0.1, f"peak_extra_bytes_{backend}": None}
    printed = report.summary(result, "here")
    assert "unknown" in printed
    assert "No compiled kernels ran" in printed


def test_a_failing_measurement_says_why() -> None:
    loss = {"name": "nothing", "options": {}, "easy_positive": False, "num_classes": 2, "embedding_size": 4}
    with pytest.raises(JobError, match=r"measurement .* failed: .*--loss nothing"):
        measure.compare_backends(loss, torch.eye(4), torch.tensor([0, 0, 1, 1]), ("reference",))


def test_default_folder_is_named_after_the_run() -> None:
    config = TrainConfig(data="folder:my images/birds", loss="triplet", seed=3)
    assert config.default_folder == Path("runs") / "folder-my-images-birds-triplet-3"
