"""The methods of the training job: what goes around a loss, proxies, label noise and held-out classes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support.jobs import command, metrics_of, quick_run, same_numbers, tiny_images, tiny_job

from dmlkernels import data
from dmlkernels.losses import SphericalExpansionLoss
from dmlkernels.train import checkpoint, job, labels, optimizer
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.evaluate import mean_distances

PROXY_WORDS = ("--loss", "proxy_anchor", "--expansion", "--anti-collapse")


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "words, expansion, anti_collapse",
    [
        ((), None, None),
        (("--anti-collapse",), None, {}),
        (
            ("--anti-collapse", "--anti-collapse-on", "all_proxies", "--anti-collapse-weight", 0.01),
            None,
            {"on": "all_proxies", "weight": 0.01},
        ),
        (("--anti-collapse", "--anti-collapse-form", "exp_neg_rate"), None, {"form": "exp_neg_rate"}),
        (("--expansion",), {}, None),
        (
            ("--expansion", "--expansion-n", 3, "--expansion-weight", 0.1, "--expansion-max-fraction", 0.5),
            {"n": 3, "weight": 0.1, "max_fraction": 0.5},
            None,
        ),
        (("--expansion", "--expansion-n", 2, "--anti-collapse"), {"n": 2}, {}),
    ],
)
def test_options_of_the_wrappers_reach_the_run(
    npz: Path,
    tmp_path: Path,
    words: tuple,
    expansion: dict | None,
    anti_collapse: dict | None,
) -> None:
    assert quick_run(npz, tmp_path / "out", "--steps", 1, "--loss", "proxy_anchor", *words) == 0
    config = metrics_of(tmp_path / "out")["config"]
    assert (config["expansion"], config["anti_collapse"]) == (expansion, anti_collapse)
    saved = checkpoint.read(tmp_path / "out")["loss"]
    depth = "base_loss." * ((expansion is not None) + (anti_collapse is not None))
    assert list(saved) == [f"{depth}proxies"]
    assert saved[f"{depth}proxies"].shape == (8, 128)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("--anti-collapse-weight", 0.1), "--anti-collapse-weight changes nothing without --anti-collapse: add it"),
        (("--expansion-n", 4), "--expansion-n changes nothing without --expansion: add it"),
        (("--anti-collapse", "--anti-collapse-on", "all_proxies"), "--anti-collapse: AntiCollapseLoss: on must be"),
        (("--loss", "mcr2", "--expansion"), "leave it out, or --loss mcr2"),
        (("--expansion", "--expansion-n", 200), "n must be at most D - 1 = 127, got 200"),
        (("--expansion", "--expansion-max-fraction", 2), "--expansion: SphericalExpansionLoss: min_fraction, max"),
        (("--features", 8, "--expansion"), "n must be at most D - 1 = 7, got 8"),
        (("--loss", "proxy_anchor", "--gain", 2), "--loss proxy_anchor has no option --gain"),
        (
            ("--loss", "mcr2", "--memory", 64),
            "--memory needs a loss of pairs, which mcr2 is not: leave it out",
        ),
        (("--memory-start", 2), "--memory-start changes nothing without --memory: add it"),
        (("--memory", 31), "--memory 31 cannot hold a batch, which is 32 images"),
        (("--loss", "margin", "--negative", "hard"), "--loss margin: MarginLoss: negative must be 'all' or"),
        (("--loss", "supcon", "--temperature", 0), "--loss supcon: SupConLoss: temperature must be a positive number"),
        (("--validate",), "tiny.npz has only 8: it needs at least 10"),
        (("--label-noise", 0.9, "--merge-classes", 8), "a batch of 32 images"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple,
    sentence: str,
) -> None:
    assert quick_run(npz, tmp_path / "out", *words) == 2
    message = capsys.readouterr().err.splitlines()
    assert len(message) == 1
    assert sentence in message[0]
    assert not (tmp_path / "out").exists()


def test_proxies_learn_three_times_as_fast_and_without_decay(npz: Path) -> None:
    run = tiny_job(npz, loss="proxy_anchor", lr=2e-3, expansion={}, anti_collapse={})
    network, proxies = run.state.optimizer.param_groups
    assert (network["initial_lr"], network["weight_decay"]) == (2e-3, optimizer.WEIGHT_DECAY)
    assert (proxies["initial_lr"], proxies["weight_decay"]) == (6e-3, 0)
    assert [tuple(p.shape) for p in proxies["params"]] == [(8, 128)]
    before = proxies["params"][0].detach().clone()
    for indices in itertools.islice(run.sampler, 2):
        run.train_step(indices)
        assert proxies["lr"] == pytest.approx(3 * network["lr"])
    assert not torch.equal(before, proxies["params"][0])


def test_the_expansion_follows_the_progress_of_the_run(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    forward = SphericalExpansionLoss.forward

    def spy(self: SphericalExpansionLoss, *args: object, **options: object) -> torch.Tensor:
        seen.append(self.fraction)
        return forward(self, *args, **options)

    run = tiny_job(npz, loss="proxy_anchor", expansion={"max_fraction": 0.4}, anti_collapse={})
    monkeypatch.setattr(SphericalExpansionLoss, "forward", spy)
    for indices in itertools.islice(run.sampler, 1):
        for _ in range(4):
            run.train_step(indices)
    assert seen == pytest.approx([0.4 * (1 - np.cos(np.pi * step / 4)) / 2 for step in range(4)])


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "words",
    [
        PROXY_WORDS,
        ("--expansion", "--label-noise", 0.3),
        ("--loss", "mcr2", "--validate"),
        ("--memory", 40, "--memory-start", 2),
        ("--loss", "margin", "--negative", "distance_weighted", "--learn-beta"),
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple) -> None:
    images, classes = tiny_images(classes=20)
    np.savez(tmp_path / "data.npz", images=images, labels=classes)
    words = (*words, "--steps", 5, "--epoch-steps", 2, "--batch", 16)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert quick_run(tmp_path / "data.npz", whole, *words) == 0
    train_step = job.Job.train_step

    def interrupted(self: job.Job, indices: list[int]) -> None:
        if self.state.progress.step == 3:
            raise KeyboardInterrupt
        train_step(self, indices)

    monkeypatch.setattr(job.Job, "train_step", interrupted)
    assert quick_run(tmp_path / "data.npz", parts, *words) == 130
    monkeypatch.setattr(job.Job, "train_step", train_step)
    torch.manual_seed(12345)
    assert command("train", "--resume", parts) == 0
    same_numbers(metrics_of(whole), metrics_of(parts))
    expected, resumed = checkpoint.read(whole), checkpoint.read(parts)
    for part in ("model", "loss"):
        for name, value in expected[part].items():
            assert torch.equal(value, resumed[part][name]), name
    for number, state in expected["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed["optimizer"]["state"][number][name]), (number, name)


def test_label_noise_is_symmetric_exact_and_seeded() -> None:
    clean = torch.arange(5).repeat_interleave(400) * 3
    noisy = labels.add_noise(clean, 0.25, seed=1)
    wrong = noisy != clean
    assert int(wrong.sum()) == 500
    assert set(noisy.tolist()) == set(clean.tolist())
    moves = torch.zeros(5, 5).index_put((clean[wrong] // 3, noisy[wrong] // 3), torch.ones(500), accumulate=True)
    assert (moves.diagonal() == 0).all()
    off = moves[~torch.eye(5, dtype=torch.bool)]
    assert 10 <= off.min() <= off.max() <= 45  # 25 each are expected
    assert torch.equal(noisy, labels.add_noise(clean, 0.25, seed=1))
    assert not torch.equal(noisy, labels.add_noise(clean, 0.25, seed=2))
    assert torch.equal(clean, labels.add_noise(clean, 0.0, seed=1))


@pytest.mark.usefixtures("no_pictures")
def test_label_noise_is_of_training_labels_only_and_is_reported(
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clean, noisy = tiny_job(npz), tiny_job(npz, label_noise=0.25)
    assert int((clean.labels != noisy.labels).sum()) == noisy.wrong_labels == 12
    assert torch.equal(clean.data.test.labels, noisy.data.test.labels)
    assert quick_run(npz, tmp_path / "out", "--label-noise", 0.25) == 0
    assert metrics_of(tmp_path / "out")["wrong_labels"] == 12
    assert "12 of 48 training labels are wrong (--label-noise 0.25)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        quick_run(npz, tmp_path / "out", "--label-noise", 1.0)
    assert "is not a share from 0 to below 1" in capsys.readouterr().err


def test_noise_comes_after_merging_and_brings_ids(npz: Path) -> None:
    merged = tiny_job(npz, merge_classes=2, label_noise=0.25, batch=16)
    assert len(merged.labels.unique()) == 4
    few = tiny_job(npz, label_noise=0.4, samples_per_class=6, batch=48)  # six images in a clean class
    assert few.copies
    assert few.takes_ids
    proxies = tiny_job(npz, label_noise=0.4, samples_per_class=6, batch=48, loss="proxy_anchor")
    assert proxies.copies
    assert not proxies.takes_ids
    proxies.train_step(next(iter(proxies.sampler)))


def test_held_out_classes_are_training_classes_and_the_test_set_is_not_touched() -> None:
    images = torch.arange(160, dtype=torch.uint8).reshape(160, 1, 1, 1)
    classes = torch.arange(40).repeat_interleave(4)
    parts = [data.ArrayImages(images[:80], classes[:80]), data.ArrayImages(images[80:], classes[80:])]
    whole = data.RetrievalData("toy", *parts, gallery=parts[1], class_names=[f"c{number}" for number in range(40)])
    held = labels.hold_out(whole, seed=3)
    assert (len(held.train), len(held.test), held.gallery) == (64, 16, None)
    assert sorted(held.train.labels.unique().tolist()) == list(range(16))
    assert sorted(held.test.labels.unique().tolist()) == list(range(16, 20))
    for part in (held.train, held.test):
        pixels = (part.batch(range(len(part))).flatten() * 255).round().long()
        assert int(pixels.max()) < 80
        assert [f"c{value // 4}" for value in pixels.tolist()] == [held.class_names[y] for y in part.labels.tolist()]
    again, other = labels.hold_out(whole, seed=3), labels.hold_out(whole, seed=4)
    assert held.class_names == again.class_names != other.class_names


@pytest.mark.usefixtures("cheap")
def test_a_validated_run_says_what_it_was_judged_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, classes = tiny_images(classes=20)
    np.savez(tmp_path / "data.npz", images=images, labels=classes)
    assert quick_run(tmp_path / "data.npz", tmp_path / "out", "--validate", "--features", 16) == 0
    result = metrics_of(tmp_path / "out")
    assert (result["train_classes"], result["test_classes"], result["test_images"]) == (8, 2, 12)
    assert result["effective_rank"] <= 16
    assert "held-out training classes" in capsys.readouterr().out


@pytest.mark.parametrize("separate", [False, True])
def test_mean_distances(separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmlkernels.train.evaluate.BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator, dtype=torch.float64))
    classes = torch.randint(4, (40,), generator=generator)
    queries, items = (rows[:15], rows[15:]) if separate else (rows, rows)
    asked, stored = (classes[:15], classes[15:]) if separate else (classes, classes)
    got = mean_distances(queries, asked, *((items, stored) if separate else ()))
    distance = (queries[:, None] - items).norm(dim=2)
    same = asked[:, None] == stored
    pos = same if separate else same & ~torch.eye(40, dtype=torch.bool)
    assert got["mean_pos_distance"] == pytest.approx(float(distance[pos].mean()), rel=1e-9)
    assert got["mean_neg_distance"] == pytest.approx(float(distance[~same].mean()), rel=1e-9)


@pytest.mark.usefixtures("no_pictures")
def test_the_history_follows_recall_rank_and_rate(npz: Path, tmp_path: Path) -> None:
    assert quick_run(npz, tmp_path / "out", "--epoch-steps", 2) == 0
    result = metrics_of(tmp_path / "out")
    for name in job.CURVES:
        steps, values = zip(*result["history"][name], strict=True)
        assert steps == (0, 2, 3)
        assert (values[0], values[-1]) == (result[f"{name}_before"], result[f"{name}_after"])
    assert 0 < result["mean_pos_distance_after"] < result["mean_neg_distance_after"] < 2


def test_the_folder_names_the_method() -> None:
    config = TrainConfig(data="glyphs", loss="proxy_anchor", expansion={}, anti_collapse={"weight": 1e-3}, seed=1)
    assert config.default_folder == Path("runs/glyphs-proxy_anchor-expansion-anti-collapse-1")
    assert TrainConfig(data="glyphs", easy_positive=True).method == "ranked_list-easy-positive"
    assert TrainConfig(data="glyphs", loss="supcon", memory=512, expansion={}).method == "supcon-memory-expansion"
