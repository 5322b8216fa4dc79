"""The training job on data sets of a few tiny images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlkernels.train import cli, job
from dmlkernels.train.config import TrainConfig

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


def same_numbers(left: dict, right: dict) -> None:
    for name in left.keys() - set(TIMES):
        assert left[name] == right[name], name


def tiny_job(npz: Path, **settings: object) -> job.Job:
    config = TrainConfig(**{"data": f"npz:{npz}", "batch": 32, "samples_per_class": 4, "steps": 4} | settings)
    return job.Job(config, npz.parent / "never written")
