"""The training job, on data sets of a few tiny images: what its settings do and what it writes."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.jobs import PICTURES, assert_picture, command, image_file, metrics_of, quick_run, same_numbers
from torch import nn

import dmlkernels
from dmlkernels.train import losses, model
from dmlkernels.train.config import JobError, TrainConfig


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


@pytest.mark.usefixtures("no_pictures")
def test_same_seed_same_numbers_other_seed_other_numbers(npz: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert quick_run(npz, tmp_path / name, "--seed", seed) == 0
    same_numbers(metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b"))
    assert metrics_of(tmp_path / "a")["history"]["loss"] != metrics_of(tmp_path / "c")["history"]["loss"]


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
    monkeypatch.setitem(losses.LOSSES, "proxies", losses.Loss("proxies", "Proxies", None, "", "", ()))
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


def test_default_folder_is_named_after_the_run() -> None:
    config = TrainConfig(data="folder:my images/birds", loss="triplet", seed=3)
    assert config.default_folder == Path("runs") / "folder-my-images-birds-triplet-3"
