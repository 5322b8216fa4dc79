"""The loop: batches of P classes × K images, one loss, an evaluation and a checkpoint per epoch, results at the end."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

import dmlkernels
from dmlkernels import _backend, metrics
from dmlkernels.data import RetrievalData, load, merge_classes
from dmlkernels.losses import SphericalExpansionLoss
from dmlkernels.samplers import ClassBalancedSampler
from dmlkernels.train import checkpoint, losses, measure, model, optimizer, pictures, report
from dmlkernels.train.augment import Augment
from dmlkernels.train.checkpoint import Progress, State
from dmlkernels.train.config import JobError, TrainConfig, require, write_json
from dmlkernels.train.evaluate import Evaluation, evaluate
from dmlkernels.train.labels import add_noise, hold_out

BATCH = 2048
RESULTS = ("metrics.json", "curves.png", "spectrum.png", "neighbors.png")
CURVES = ("recall_at_1", "effective_rank", "coding_rate")  # what the history follows through training


def _batch_classes(config: TrainConfig, labels: Tensor) -> int:
    """Classes in a batch, or a sentence why the batch that was asked for cannot be made."""
    per_class = config.samples_per_class
    classes = len(labels.unique())
    size = config.batch or min(BATCH, classes * per_class)
    if per_class < 2 or size < 2 * per_class or size % per_class:
        raise JobError(f"a batch of {size} is not at least two classes of {per_class} images each, 2 or more")
    if size > len(labels) or size // per_class > classes:
        raise JobError(
            f"a batch of {size} images ({size // per_class} classes × {per_class}) is larger than the training data, "
            f"{len(labels)} images of {classes} classes: choose a smaller --batch or --samples-per-class"
        )
    if 0 < config.memory < size:
        raise JobError(f"--memory {config.memory} cannot hold a batch, which is {size} images")
    return size // per_class


@dataclasses.dataclass
class Outcome:
    """A finished run: what ``metrics.json`` holds, and the embeddings of the queries and of a separate gallery."""

    result: dict[str, Any]
    queries: Tensor
    gallery: Tensor | None


class Job:
    """One run: everything is loaded, built and checked here, before the first file is written.

    Args:
        config: its settings.
        folder: where its files go.
        data: the data set, where the caller has loaded it; otherwise ``config.data`` is.
        saved: content of a checkpoint to go on from.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        data: RetrievalData | None = None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        require("matplotlib")
        self.config, self.folder = config, folder
        self.device = torch.device(config.device)
        self.backend = config.backend or dmlkernels.get_backend()
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise JobError(f"--device {config.device}: this PyTorch sees no CUDA device")
        data = data or load(config.data, size=config.image_size, seed=config.seed)
        self.data = hold_out(data, config.seed) if config.validate else data
        clean = merge_classes(self.data.train.labels, config.merge_classes, config.seed)
        classes = _batch_classes(config, clean)
        self.labels = clean
        if config.label_noise:
            self.labels = add_noise(clean, config.label_noise, config.seed)
            classes = _batch_classes(config, self.labels)  # noise can empty a class
        self.wrong_labels = int((self.labels != clean).sum())
        self.copies = int(self.labels.unique(return_counts=True)[1].min()) < config.samples_per_class
        torch.manual_seed(config.seed)
        network = model.build(config.model, self.data.train.channels, config.features, config.pretrained)
        network.to(self.device)
        self.loss_arguments: dict[str, Any] = {
            "name": config.loss,
            "options": config.loss_options,
            "easy_positive": config.easy_positive,
            "num_classes": int(self.labels.max()) + 1,
            "embedding_size": config.features,
            "memory": config.memory,
            "memory_start": config.memory_start,
            "expansion": config.expansion,
            "anti_collapse": config.anti_collapse,
        }
        loss = losses.build(**self.loss_arguments).to(self.device)
        # Copies of an image must share an id, or each would be the other's nearest positive; a memory holds older ones.
        self.takes_ids = (self.copies or config.memory > 0) and losses.LOSSES[config.loss].pairs
        self.fused = self._try_loss(loss)
        adamw, schedule = optimizer.build(network, loss, config.lr, config.steps)
        self.sampler = ClassBalancedSampler(
            self.labels,
            classes,
            config.samples_per_class,
            batches=config.steps_per_epoch,
            seed=config.seed,
            replacement=self.copies,
        )
        self.state = State(
            model=network,
            loss=loss,
            optimizer=adamw,
            scheduler=schedule,
            sampler=self.sampler,
            generator=torch.Generator().manual_seed(config.seed),
            progress=Progress(),
        )
        self.augment = Augment(flip=config.flip)
        self.latest: Evaluation | None = None
        if saved is not None:
            checkpoint.restore(saved, self.state)

    def _try_loss(self, loss: nn.Module) -> bool:
        """Whether kernels, not the reference, run this loss; one that cannot run stops the job before it starts."""
        rows = torch.eye(4, self.config.features, device=self.device)
        try:
            with dmlkernels.use_backend(self.backend):
                copy.deepcopy(loss)(rows, torch.tensor([0, 0, 1, 1], device=self.device))
                return _backend.namespace(self.config.loss, self.device) is not None
        except (RuntimeError, ValueError) as error:
            raise JobError(str(error)) from None

    def evaluate(self) -> Evaluation:
        """Measure the network as it is on the classes that it is not trained on."""
        found = evaluate(self.state.model, self.data, self.device)
        if found is None:
            step = self.state.progress.step
            raise JobError(f"the embeddings are not finite after step {step}; try a lower --lr")
        return found

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(indices)
        images = self.data.train.batch(chosen).to(self.device)
        return self.augment(images, self.state.generator), self.labels[chosen].to(self.device)

    def train_step(self, indices: list[int]) -> None:
        state = self.state
        state.model.train()
        images, labels = self.batch(indices)
        ids = {"ids": torch.as_tensor(indices).to(self.device)} if self.takes_ids else {}
        for module in state.loss.modules():
            if isinstance(module, SphericalExpansionLoss):
                module.set_epoch(state.progress.step / self.config.steps, 1)
        with dmlkernels.use_backend(self.backend):
            value = state.loss(state.model(images), labels, **ids)
        number = float(value.detach())
        if not math.isfinite(number):
            raise JobError(f"the loss became {number} at step {state.progress.step + 1}; try a lower --lr")
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        state.optimizer.step()
        state.scheduler.step()
        state.progress.step += 1
        state.progress.losses.append(number)

    def train(self, log: TextIO) -> None:
        """All the epochs that are still to do, each closed by an evaluation and a checkpoint."""
        progress, config = self.state.progress, self.config
        size = self.sampler.classes_per_batch * config.samples_per_class
        bar = require("tqdm").tqdm(
            total=config.steps,
            initial=progress.step,
            unit="step",
            file=log,
            disable=not log.isatty(),
            dynamic_ncols=True,
        )
        with bar:
            while progress.step < config.steps:
                start = time.perf_counter()
                first = progress.step
                self.sampler.set_epoch(progress.epoch)
                rate = 0.0
                for indices in self._remaining():
                    self.train_step(indices)
                    rate = size * (progress.step - first) / (time.perf_counter() - start)
                    bar.set_postfix_str(self._status(rate), refresh=False)
                    bar.update()
                self.latest = self.evaluate()
                progress.evaluations.append({"step": progress.step, **self.latest.numbers})
                progress.epoch += 1
                progress.seconds += time.perf_counter() - start
                checkpoint.save(self.folder, config, self.state)
                bar.set_postfix_str(self._status(rate))
                if bar.disable:
                    print(f"step {progress.step}/{config.steps}  {self._status(rate)}", file=log, flush=True)

    def _status(self, rate: float) -> str:
        progress = self.state.progress
        return (
            f"loss {progress.losses[-1]:.4f}  R@1 {progress.evaluations[-1]['recall_at_1']:.3f}  {rate:,.0f} images/s"
        )

    def _remaining(self) -> Iterator[list[int]]:
        left = self.config.steps - self.state.progress.step
        for _, indices in zip(range(min(left, self.config.steps_per_epoch)), self.sampler, strict=False):
            yield indices

    def start(self, before: Evaluation | None = None) -> None:
        """Measure the untrained network (None: it is not known yet), then make the run's folder, or empty it."""
        found = before or self.evaluate()
        self.state.progress.evaluations = [{"step": 0, **found.numbers}]
        self.state.progress.spectrum_before = metrics.singular_values(found.queries).tolist()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (*RESULTS, checkpoint.NAME):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise JobError(f"--out {self.folder}: {error.strerror}") from None

    def finish(self, draw: bool = True) -> Outcome:
        """Measure the trained network and the loss; write the pictures (`draw`) and, last of all, ``metrics.json``."""
        progress, config = self.state.progress, self.config
        after, queries, gallery = self.latest or self.evaluate()
        images, labels = self.batch(next(iter(self.sampler)))
        # In training mode, as the loss met its batches; the network has been evaluated and saved already.
        with torch.no_grad():
            batch = self.state.model.train()(images)
        costs = measure.compare_backends(self.loss_arguments, batch, labels, (self.backend, "reference"), config.device)
        fused, reference = costs[self.backend], costs["reference"]
        before = progress.evaluations[0]
        result: dict[str, Any] = {f"{name}_before": before[name] for name in after}
        result |= {f"{name}_after": value for name, value in after.items()}
        result |= {
            "effective_rank": after["effective_rank"],
            "step_time_fused": fused["step_time"],
            "step_time_reference": reference["step_time"],
            "peak_extra_bytes_fused": fused["peak_extra_bytes"],
            "peak_extra_bytes_reference": reference["peak_extra_bytes"],
            "fused_kernels": self.fused,
            "batch": len(labels),
            "train_images": len(self.labels),
            "train_classes": len(self.labels.unique()),
            "wrong_labels": self.wrong_labels,
            "test_images": len(self.data.test),
            "test_classes": len(self.data.test.labels.unique()),
            "seconds_training": progress.seconds,
            "seed": config.seed,
            "method": config.method,
            "config": dataclasses.asdict(config),
            "history": {"loss": progress.losses}
            | {name: [(found["step"], found[name]) for found in progress.evaluations] for name in CURVES},
            "versions": report.versions(),
        }
        if draw:
            spectrum = metrics.singular_values(queries).tolist()
            pictures.curves(self.folder / "curves.png", result)
            pictures.spectrum(self.folder / "spectrum.png", progress.spectrum_before, spectrum, result)
            pictures.neighbors(self.folder / "neighbors.png", self.data, queries, gallery, config.seed)
        write_json(self.folder / "metrics.json", result)
        return Outcome(result, queries, gallery)


def run(
    config: TrainConfig,
    folder: Path,
    *,
    saved: dict[str, Any] | None = None,
    data: RetrievalData | None = None,
    log: TextIO | None = None,
    before: Evaluation | None = None,
    draw: bool = True,
) -> Outcome:
    """Train, evaluate and report one run.

    Args:
        config: the settings.
        folder: the run's folder; results of an earlier run there are replaced.
        saved: content of a checkpoint (``checkpoint.read``) to go on from.
        data: the data set, if it is loaded already.
        log: where the progress goes; None: stderr.
        before: the evaluation of the untrained network, if it is known already.
        draw: write the three pictures.

    Raises:
        JobError: settings, data or this machine do not allow the run; nothing half-written is left behind.
        DataError: the same, for the images.
    """
    job = Job(config, folder, data, saved)
    try:
        if saved is None:
            job.start(before)
        job.train(log or sys.stderr)
        return job.finish(draw)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.rmdir()  # refused, as it should be, where a checkpoint is in it
        raise
