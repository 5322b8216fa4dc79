"""The demo: six rows of one table and one picture, and sentences that say what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.jobs import assert_picture, command, metrics_of, tiny_images

from dmlkernels.data import load
from dmlkernels.train import demo, verdicts
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.job import Job
from dmlkernels.train.labels import keep_test_classes
from dmlkernels.train.rows import LR, ROWS

NAMES = [row.name for row in ROWS]


@pytest.mark.full
@pytest.mark.usefixtures("cheap")
def test_demo(npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    assert command("demo", "--quick", "--data", f"npz:{npz}", "--steps", 2, "--seed", 3, "--out", out) == 0
    assert_picture(out / "demo.png")
    runs = json.loads((out / "demo.json").read_text())
    assert list(runs) == NAMES
    assert len(runs) == 6
    for row in ROWS:
        result = runs[row.name]
        assert metrics_of(out / row.name) == result
        assert {path.name for path in (out / row.name).iterdir()} == {"metrics.json", "checkpoint.pt"}
        assert (result["batch"], result["seed"], result["test_classes"]) == (16, 3, 8)
        assert result["train_classes"] == (2 if row.merged else 8)
        assert [step for step, _ in result["history"]["recall_at_1"]] == [0, 2]
        config = result["config"]
        assert (config["steps"], config["lr"], config["features"]) == (2, LR, 128)
        assert row.settings.items() <= config.items()
        # One seed, one network to start with.
        assert result["recall_at_1_before"] == runs["rll"]["recall_at_1_before"]
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("fine labels", "4 classes merged"))]
    assert len(table) == 6
    for row, line in zip(ROWS, table, strict=True):
        result = runs[row.name]
        assert line.startswith(demo.title(row))
        shown = [result[f"{name}_after"] for name in ("recall_at_1", "map_at_r")]
        shown += [result[f"mean_{sign}_distance_after"] for sign in ("pos", "neg")]
        cells = line.removeprefix(demo.title(row)).split()
        assert [cells[0], cells[1], cells[3], cells[4]] == [f"{value:.3f}" for value in shown]
        assert cells[2] == f"{result['effective_rank']:.1f}"
        assert cells[5:] == ["10.0", "ms", "10.0", "ms", "1.0", "MB", "1.0", "MB"]
    for words in (
        "under 1 point of R@1 are noise",
        "about three times these steps",
        "a diagnostic, not a score",
        *verdicts.of_one_seed(runs),
    ):
        assert words in printed


def test_the_untrained_network_is_the_same_in_all_rows(npz: Path, tmp_path: Path) -> None:
    """The demo evaluates it once."""
    found = []
    for row in (ROWS[0], ROWS[3], ROWS[5]):
        config = TrainConfig(f"npz:{npz}", batch=16, steps=2, seed=1, **row.settings)
        found.append(Job(config, tmp_path / row.name).evaluate().numbers)
    assert found[0] == found[1] == found[2]


def results(**changes: dict[str, float]) -> dict[str, dict[str, float]]:
    base = {"recall_at_1_after": 0.5, "effective_rank": 20.0}
    return {name: base | changes.get(name.replace("-", "_"), {}) for name in NAMES}


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"rll_anti_collapse": {"effective_rank": 26.0, "recall_at_1_after": 0.49}},
            "Anti-Collapse: the higher effective rank that its paper claims shows: 20.0 without it, 26.0 with it "
            "(-1.0 points of R@1).",
        ),
        (
            {"rll_anti_collapse": {"effective_rank": 20.6}},
            "Anti-Collapse: the higher effective rank that its paper claims does not show here: 20.0 without it, 20.6 "
            "with it (+0.0 points of R@1).",
        ),
        (
            {"merged_rll_easy": {"recall_at_1_after": 0.8}},
            "Easy positives: the recall that they are claimed to gain where a class has sub-clusters shows with merged "
            "labels: +30.0 points of R@1.",
        ),
        (
            {"merged_rll_easy": {"recall_at_1_after": 0.495}},
            "does not show here: -0.5 points of R@1, which one seed cannot tell from none.",
        ),
        ({"merged_rll_easy": {"recall_at_1_after": 0.4}}, "does not show here, they lose: -10.0 points of R@1."),
        (
            {"proxy_anchor_expansion": {"recall_at_1_after": 0.505}},
            "no gain was expected here, and none shows: +0.5 points of R@1.",
        ),
        ({"proxy_anchor_expansion": {"recall_at_1_after": 0.55}}, "in this seed it gains: +5.0 points of R@1."),
        ({"proxy_anchor_expansion": {"recall_at_1_after": 0.45}}, "in this seed it loses: -5.0 points of R@1."),
    ],
)
def test_the_sentences_say_what_the_numbers_say(changes: dict, sentence: str) -> None:
    said = verdicts.of_one_seed(results(**changes))
    assert len(said) == 3
    assert any(line.endswith(sentence) for line in said)


@pytest.mark.usefixtures("cheap")
def test_a_batch_too_large_for_merged_labels_stops_the_demo_at_once(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("demo", "--data", f"npz:{npz}", "--batch", 32, "--out", tmp_path / "out") == 2
    assert "choose a smaller --batch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_refuses_too_few_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = tiny_images(classes=8)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    assert command("demo", "--data", f"npz:{tmp_path / 'few.npz'}", "--out", tmp_path / "out") == 2
    assert "too few classes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fewer_test_classes(npz: Path) -> None:
    whole = load(f"npz:{npz}")
    few = keep_test_classes(whole, 3)
    assert few.train is whole.train
    assert few.test.labels.unique().tolist() == whole.test.labels.unique()[:3].tolist()
    assert (few.test.batch([5]) == whole.test.batch([5])).all()
    assert len(keep_test_classes(whole, 100).test) == len(whole.test)
