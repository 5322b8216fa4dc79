"""Every loss of the package on the glyphs, one seed and the same steps: the source of the numbers in docs/losses.md.

    python -m bench.studies.losses    train what is not trained yet, one run after the other, and write the results
    python -m bench.report            put the tables into docs/losses.md

A run that is interrupted goes on from its checkpoint; one that is done is not repeated. The step time is that of the
loss alone, forward and backward, on embeddings that its own network makes of a batch of the training job's default
size; run this where nothing else runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dmlkernels
from bench.kernels import host
from bench.report import losses as table
from bench.report.tables import write_json
from bench.studies.series import once
from dmlkernels.data import load
from dmlkernels.samplers import ClassBalancedSampler
from dmlkernels.train import measure
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.evaluate import Evaluation
from dmlkernels.train.job import Job
from dmlkernels.train.rows import LR

BATCH, STEPS, SEED = 256, 150, 0
TIMED_ROWS = 2048  # no larger than the memory of a row that has one


def configuration(row: table.Row, **others: Any) -> TrainConfig:
    shared = {"data": "glyphs", "batch": BATCH, "steps": STEPS, "epoch_steps": STEPS, "lr": LR, "seed": SEED}
    return TrainConfig(**{**shared, **row.settings, **others})


def step_time(job: Job, rows: int = TIMED_ROWS) -> float:
    """Median seconds of forward and backward of the job's loss, as it was trained."""
    per_class = job.config.samples_per_class
    classes = min(rows // per_class, len(job.labels.unique()))
    sampler = ClassBalancedSampler(job.labels, classes, per_class, batches=1, seed=SEED)
    images, labels = job.batch(next(iter(sampler)))
    # In training mode, as the loss met its batches; the network has been evaluated and saved already.
    with torch.no_grad():
        embeddings = job.state.model.train()(images)

    def step() -> None:
        leaf = embeddings.clone().requires_grad_()
        with dmlkernels.use_backend(job.backend):
            job.state.loss(leaf, labels).backward()

    return measure.interleaved_times({"loss": step}, job.config.device)["loss"]


def times(job: Job) -> dict[str, float]:
    return {"step_time": step_time(job), "seconds": job.state.progress.seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="for a trial: of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/losses"), help="checkpoints and finished runs")
    parser.add_argument("--out", type=Path, default=table.FILE, help="where the results go")
    arguments = parser.parse_args()
    data = load("glyphs", seed=SEED)
    untrained: dict[tuple, Evaluation] = {}
    results: dict[str, dict[str, Any]] = {}
    machine = host.machine()
    bar = tqdm(table.ROWS, unit="run", dynamic_ncols=True)
    for row in bar:
        bar.set_description(row.name)
        config = configuration(row, steps=arguments.steps, epoch_steps=arguments.steps)
        results[row.name] = once(config, arguments.folder / row.name, data, untrained, times)
        write_json(arguments.out, {"machine": machine, "rows": TIMED_ROWS, "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
