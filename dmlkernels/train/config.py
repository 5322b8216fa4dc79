"""What a run is: its settings, the sentence it stops with, and how its files reach the disk."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class JobError(ValueError):
    """A run that cannot go on; its message is one sentence for the user."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one run; a run's checkpoint carries them, so that it resumes as it was started.

    Args:
        data: what to train on, as ``dmlkernels.data.load`` reads it (``glyphs``, ``folder:PATH``, ...).
        image_size: side of the square images; None takes the data set's own.
        model: ``small`` or ``timm:NAME``.
        pretrained: load timm's weights.
        loss: a name of ``dmlkernels.train.losses.LOSSES``.
        loss_options: its constructor arguments where they differ from its defaults.
        easy_positive: pull every anchor towards its nearest positive only.
        memory: compare a batch with so many embeddings of earlier ones, its own included (0: with itself).
        memory_start: the step from which on it is.
        anti_collapse: constructor arguments of an `AntiCollapseLoss` around the loss; None: none.
        expansion: constructor arguments of a `SphericalExpansionLoss` around the loss; None: none.
        features: size of the embeddings.
        merge_classes: how many training classes share one label, at random (1: none).
        label_noise: share of the training labels that are wrong, at random.
        validate: hold out a fifth of the training classes and test on them, not on the test classes.
        batch: images in a batch; None takes 2,048, or all classes where there are fewer.
        samples_per_class: images of a class in a batch.
        steps: optimizer steps of the whole run.
        epoch_steps: steps between two evaluations; None divides the run by eight.
        lr: the highest learning rate of the one-cycle schedule.
        flip: mirror half of the training images.
        seed: of everything that is drawn.
        device: ``cpu`` or ``cuda``.
        backend: of the loss: ``auto``, ``native``, ``triton`` or ``reference``; None: what ``dmlkernels`` is set to.
    """

    data: str
    image_size: int | None = None
    model: str = "small"
    pretrained: bool = False
    loss: str = "ranked_list"
    loss_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    easy_positive: bool = False
    memory: int = 0
    memory_start: int = 0
    anti_collapse: dict[str, Any] | None = None
    expansion: dict[str, Any] | None = None
    features: int = 128
    merge_classes: int = 1
    label_noise: float = 0.0
    validate: bool = False
    batch: int | None = None
    samples_per_class: int = 8
    steps: int = 420
    epoch_steps: int | None = None
    lr: float = 1e-2
    flip: bool = False
    seed: int = 0
    device: str = "cpu"
    backend: str | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_steps or max(1, -(-self.steps // 8))

    @property
    def method(self) -> str:
        """The loss and what is around it, for titles and names."""
        around = {"easy-positive": self.easy_positive, "memory": self.memory > 0}
        around |= {"expansion": self.expansion is not None, "anti-collapse": self.anti_collapse is not None}
        return "-".join([self.loss, *(name for name, on in around.items() if on)])

    @property
    def default_folder(self) -> Path:
        data = re.sub(r"[^A-Za-z0-9]+", "-", self.data).strip("-")
        return Path("runs") / f"{data}-{self.method}-{self.seed}"


FIELDS = tuple(field.name for field in dataclasses.fields(TrainConfig))


def require(module: str, source: str = "dmlkernels[train]") -> ModuleType:
    """Import a package that the job needs and the library does not, or say how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise JobError(f"{package} is missing: run `pip install {source}`.") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a neighbour of ``path`` and rename it: ``path`` is whole or absent, never half-written."""
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
