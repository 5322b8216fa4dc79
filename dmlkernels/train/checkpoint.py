"""One file that holds all a run needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmlkernels.samplers import ClassBalancedSampler
from dmlkernels.train.config import JobError, TrainConfig, write_atomically

NAME = "checkpoint.pt"


@dataclasses.dataclass
class Progress:
    """How far a run is, and what it has seen: numbers only, so that a checkpoint loads without running code."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # one a step
    evaluations: list[dict[str, float]] = dataclasses.field(default_factory=list)  # with their step, from step 0 on
    spectrum_before: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class State:
    """Everything that changes while a run trains."""

    model: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    sampler: ClassBalancedSampler
    generator: torch.Generator
    progress: Progress


def save(folder: Path, config: TrainConfig, state: State) -> None:
    content = {
        "config": dataclasses.asdict(config),
        "model": state.model.state_dict(),
        "loss": state.loss.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "sampler": state.sampler.state_dict(),
        "generator": state.generator.get_state(),
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "progress": dataclasses.asdict(state.progress),
    }
    write_atomically(folder / NAME, lambda part: torch.save(content, part))


def read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    if not path.is_file():
        raise JobError(f"{folder} holds no {NAME} to resume from")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        raise JobError(f"{path} is not a checkpoint of this program") from None


def restore(saved: dict[str, Any], state: State) -> None:
    state.model.load_state_dict(saved["model"])
    state.loss.load_state_dict(saved["loss"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.scheduler.load_state_dict(saved["scheduler"])
    state.sampler.load_state_dict(saved["sampler"])
    state.generator.set_state(saved["generator"])
    torch.set_rng_state(saved["torch_rng"])
    if saved["cuda_rng"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda_rng"])
    state.progress = Progress(**saved["progress"])
