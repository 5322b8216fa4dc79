"""One training of a series: it goes on from its checkpoint, and is not repeated when it is done."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report.tables import read_json, write_json
from dmlkernels.data import RetrievalData
from dmlkernels.train import checkpoint
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.evaluate import Evaluation
from dmlkernels.train.job import Job


def once(
    config: TrainConfig,
    folder: Path,
    data: RetrievalData,
    untrained: dict[tuple, Evaluation],
    more: Callable[[Job], dict[str, Any]] = lambda job: {},
) -> dict[str, Any]:
    """What the tables are made of, from the folder if these settings are done.

    Args:
        untrained: evaluations before training, of this series.
        more: what else is measured of a trained job.
    """
    done = folder / "result.json"
    if done.is_file() and (result := read_json(done))["config"] == dataclasses.asdict(config):
        return result
    job = _trained(config, folder, data, untrained)
    result = {
        "config": dataclasses.asdict(job.config),
        "evaluations": job.state.progress.evaluations,
        "wrong_labels": job.wrong_labels,
        "train_classes": len(job.data.train.labels.unique()),
        "test_classes": len(job.data.test.labels.unique()),
        "test_images": len(job.data.test),
        **more(job),
    }
    write_json(done, result)
    return result


def _trained(config: TrainConfig, folder: Path, data: RetrievalData, untrained: dict[tuple, Evaluation]) -> Job:
    """A job at its end, from its checkpoint if it has one of these settings."""
    saved = checkpoint.read(folder) if (folder / checkpoint.NAME).is_file() else None
    if saved is not None and saved["config"] != dataclasses.asdict(config):
        saved = None
    job = Job(config, folder, data, saved)
    if saved is None:
        # Runs of one seed start from one network, whatever their loss.
        network = (config.seed, config.features, config.validate)
        if network not in untrained:
            untrained[network] = job.evaluate()
        job.start(untrained[network])
    job.train(io.StringIO())
    return job
