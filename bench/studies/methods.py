"""The six rows of the demo, longer and with three seeds: the source of every number in docs/methods.md.

    python -m bench.studies.methods    train what is not trained yet, one run after the other, and write the results
    python -m bench.report             put the tables into docs/methods.md

A run that is interrupted goes on from its last evaluation; one that is done is not repeated. The split into training
and test classes is that of seed 0 in every run, so that a seed changes the initial network, the batches, the
augmentation and the noise, and no test class was ever a class that settings were chosen with.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.report import methods as table
from bench.report.tables import write_json
from bench.studies.series import once
from dmlkernels.data import load
from dmlkernels.train.config import TrainConfig
from dmlkernels.train.evaluate import Evaluation
from dmlkernels.train.rows import LR, MERGED, ROWS, Row

BATCH = 256
STEPS = {"ranked_list": 150, "proxy_anchor": 450}
EVALUATIONS = 3  # of the first seed, which is followed through training
SEEDS = (0, 1, 2)
NOISE = 0.2
FEW_FEATURES = 32

RATES = (3e-3, 1e-2)
ALPHAS = (16.0, 32.0)
WEIGHTS = (3e-4, 1e-3, 3e-3)
MARGINS = (0.4, 0.6, 0.8, 1.0)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: the table it belongs to, its own name in there, and its settings."""

    group: str
    name: str
    config: TrainConfig


def _config(settings: Mapping[str, Any], evaluations: int = 1, **others: Any) -> TrainConfig:
    steps = STEPS[settings.get("loss", "ranked_list")]
    shared = {"data": "glyphs", "batch": BATCH, "steps": steps, "epoch_steps": steps // evaluations, "lr": LR}
    return TrainConfig(**{**shared, **settings, **others})


def _row(name: str) -> Row:
    return next(row for row in ROWS if row.name == name)


def runs() -> Iterator[Run]:
    """All trainings, what others depend on first."""
    proxy, merged = _row("proxy-anchor").settings, {"merge_classes": MERGED}
    for lr in RATES:
        yield Run("validation", f"rll, lr {lr:g}", _config({}, validate=True, lr=lr))
        for alpha in ALPHAS:
            name, settings = f"proxy-anchor, alpha {alpha:g}", {**proxy, "loss_options": {"alpha": alpha}}
            yield Run("validation", f"{name}, lr {lr:g}", _config(settings, validate=True, lr=lr))
    for weight in WEIGHTS:
        settings = {"anti_collapse": {"on": "features", "weight": weight}}
        yield Run("validation", f"rll-anti-collapse, weight {weight:g}", _config(settings, validate=True))
    for margin in MARGINS:
        settings = {**merged, "easy_positive": True, "loss_options": {"margin": margin}}
        yield Run("validation", f"merged-rll-easy, margin {margin:g}", _config(settings, validate=True))
    for seed in SEEDS:
        for row in ROWS:
            evaluations = EVALUATIONS if seed == SEEDS[0] else 1
            yield Run("rows", f"{row.name}, seed {seed}", _config(row.settings, evaluations, seed=seed))
    fine = [row for row in ROWS if not row.merged]
    for seed in SEEDS:
        for row in fine:
            yield Run("noise", f"{row.name}, seed {seed}", _config(row.settings, seed=seed, label_noise=NOISE))
    for row in fine:
        few = _config(row.settings, seed=SEEDS[0], features=FEW_FEATURES)
        yield Run("features", f"{row.name}, seed {SEEDS[0]}", few)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/methods"), help="checkpoints and finished runs")
    arguments = parser.parse_args()
    data = load("glyphs", seed=0)
    untrained: dict[tuple, Evaluation] = {}
    results: dict[str, dict[str, Any]] = {}
    bar = tqdm(list(runs()), unit="run", dynamic_ncols=True)
    for run in bar:
        bar.set_description(f"{run.group}: {run.name}")
        folder = arguments.folder / run.group / run.name.replace(", ", "-").replace(" ", "-")
        results.setdefault(run.group, {})[run.name] = once(run.config, folder, data, untrained)
        write_json(table.FILE, {"torch": torch.__version__, "runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
