"""The training job with every loss of the package, what goes around them, and a memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from support import every_loss
from support.jobs import metrics_of, quick_run, tiny_job

from dmlkernels.losses import AntiCollapseLoss, CrossBatchMemory, SphericalExpansionLoss
from dmlkernels.train import checkpoint, losses
from dmlkernels.train.config import JobError

LOSSES = sorted(losses.LOSSES)
PAIRS = [name for name in LOSSES if losses.LOSSES[name].pairs]


def test_the_table_has_every_loss_of_the_package() -> None:
    assert sorted(entry.module for entry in losses.LOSSES.values()) == sorted(every_loss.PLAIN)
    assert {losses.LOSSES[name].module for name in PAIRS} == set(every_loss.PAIRS)
    assert {name for name in LOSSES if losses.LOSSES[name].proxies} == {"proxy_anchor", "proxy_nca", "soft_triple"}
    arguments = {name: losses.LOSSES[name].arguments for name in LOSSES}
    for option in losses.OPTIONS:
        assert any(option in known for known in arguments.values()), f"no loss has the option {option}"


def build(name: str, **given: object) -> torch.nn.Module:
    return losses.build(name, **{"options": {}, "easy_positive": False, "num_classes": 4, "embedding_size": 8, **given})


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("expansion, anti_collapse", list(itertools.product([None, {"n": 3}], [None, {"weight": 0.5}])))
@pytest.mark.parametrize("memory", [0, 40])
@pytest.mark.parametrize("easy", [False, True])
def test_every_loss_trains_with_everything_around_it(
    name: str, easy: bool, memory: int, expansion: dict | None, anti_collapse: dict | None
) -> None:
    given = {"easy_positive": easy, "memory": memory, "expansion": expansion, "anti_collapse": anti_collapse}
    refusals = {
        f"--loss {name} has no option --easy-positive": easy and name not in PAIRS,
        f"--memory needs a loss of pairs, which {name} is not: leave it out": memory and name not in PAIRS,
        "--expansion needs a loss of pairs or with proxies: leave it out": expansion is not None and name == "mcr2",
    }
    if refused := [sentence for sentence, applies in refusals.items() if applies]:
        with pytest.raises(JobError, match=refused[0]):
            build(name, **given)
        return
    loss = build(name, **given)
    assert isinstance(loss, AntiCollapseLoss) == (anti_collapse is not None)
    inside = loss.base_loss if anti_collapse else loss
    assert isinstance(inside, SphericalExpansionLoss) == (expansion is not None)
    inside = inside.base_loss if expansion else inside
    assert isinstance(inside, CrossBatchMemory) == (memory > 0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        rows = torch.randn(16, 8, generator=generator, requires_grad=True)
        loss(rows, torch.arange(16) // 4).backward()
        for leaf in (rows, *loss.parameters()):
            assert leaf.grad is not None
            assert leaf.grad.abs().sum() > 0


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_a_run(npz: Path, tmp_path: Path, name: str) -> None:
    assert quick_run(npz, tmp_path / "out", "--steps", 2, "--epoch-steps", 2, "--loss", name) == 0
    result = metrics_of(tmp_path / "out")
    assert (result["method"], result["fused_kernels"]) == (name, True)
    assert 0 <= result["recall_at_1_after"] <= 1


@pytest.mark.usefixtures("no_pictures")
def test_a_run_with_a_memory(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are known by their number in the data set: none meets what it was in an earlier batch."""
    seen: list[dict] = []
    forward = CrossBatchMemory.forward

    def spy(self: CrossBatchMemory, *args: object, **given: object) -> torch.Tensor:
        seen.append(given)
        return forward(self, *args, **given)

    run = tiny_job(npz, memory=80, memory_start=1)
    monkeypatch.setattr(CrossBatchMemory, "forward", spy)
    indices = next(iter(run.sampler))
    for _ in range(3):
        run.train_step(indices)
    assert [given["ids"].tolist() for given in seen] == [indices] * 3
    memory: Any = run.state.loss
    assert (memory.memory_size, memory.embedding_size, memory.start_step) == (80, 128, 1)
    assert (int(memory.fill), int(memory.position), int(memory.step)) == (80, 16, 3)
    assert quick_run(npz, tmp_path / "out", "--memory", 40, "--memory-start", 2, "--steps", 3) == 0
    config = metrics_of(tmp_path / "out")["config"]
    assert (config["memory"], config["memory_start"]) == (40, 2)
    assert int(checkpoint.read(tmp_path / "out")["loss"]["fill"]) == 40
