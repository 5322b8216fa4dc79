"""The losses that bench/studies/losses.py trains, and their tables in docs/losses.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from bench.report.kernels import render_machine
from bench.report.tables import RESULTS, grid, last, read_json
from dmlkernels._losses import TABLE

FILE = RESULTS / "losses.json"
METRICS = {"recall_at_1": ("R@1", 3), "map_at_r": ("MAP@R", 3), "effective_rank": ("effective rank", 1)}
CLOSE = 0.02  # two standard deviations of R@1 among the seeds of docs/methods.md


@dataclasses.dataclass(frozen=True)
class Row:
    """One loss of the table.

    Args:
        name: of its folder and in JSON.
        choose: when to choose it, as far as that does not depend on these numbers; the rest of the sentence is made of
            them.
        settings: arguments of `TrainConfig` beside those that all rows share.
    """

    name: str
    choose: str
    settings: Mapping[str, Any]

    @property
    def command(self) -> str:
        """How the job is asked for it."""
        words = ["--loss", self.settings["loss"], *(["--easy-positive"] if "easy_positive" in self.settings else [])]
        for option, value in self.settings.get("loss_options", {}).items():
            words += ["--" + option.replace("_", "-"), str(value)]
        return " ".join(words + (["--memory", str(self.settings["memory"])] if "memory" in self.settings else []))


def _row(choose: str, loss: str, **settings: Any) -> Row:
    extra = [word for word, on in (("easy", "easy_positive"), ("memory", "memory")) if on in settings]
    extra += settings.get("loss_options", {}).values()
    return Row("-".join([loss, *map(str, extra)]), choose, {"loss": loss, **settings})


EASY_SEMIHARD = {"negative": "semihard"}
# What is worth a row beside the plain loss.
VARIANTS = {
    "ranked_list": [
        _row("if the batch that fits is small: it adds the negatives of earlier batches", "ranked_list", memory=2048)
    ],
    "triplet": [
        _row(
            "if a class has several kinds of images, or a label several classes",
            "triplet",
            easy_positive=True,
            loss_options=EASY_SEMIHARD,
        )
    ],
}
ROWS = tuple(row for loss in TABLE for row in [_row(loss.choose, loss.name), *VARIANTS.get(loss.name, [])])
Runs = dict[str, dict[str, Any]]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def overview() -> str:
    """The losses, and when to choose which."""
    rows = [[f"`F.{x.function}`" if x.function else "", f"`losses.{x.module}`", x.choose] for x in TABLE]
    return grid(["function", "module", "choose it"], rows)


def formulae() -> str:
    """What the losses compute."""
    rows = [[f"`{loss.name}`", f"`{loss.module}`", loss.formula] for loss in TABLE]
    return grid(["`--loss`", "module", "a row's (or proxy's) loss"], rows)


def settings(results: dict[str, Any]) -> str:
    """What all runs share."""
    first = next(iter(results["runs"].values()))
    config = first["config"]
    return (
        f"One seed ({config['seed']}); {config['steps']} steps with batches of {config['batch']}, "
        f"{config['samples_per_class']} of a class; AdamW, one-cycle to {config['lr']:g}; "
        f"{config['features']} features. Trained on {first['train_classes']:,} classes, tested on "
        f"{first['test_images']:,} images of {first['test_classes']:,} others. Step time: forward and "
        f"backward of the loss alone, {results['rows']:,} × {config['features']}.\n\n{render_machine(results)}"
    )


def rows(results: dict[str, Any]) -> str:
    """The rows, the best R@1 first."""
    runs: Runs = results["runs"]
    measured = sorted((row for row in ROWS if row.name in runs), key=lambda row: -last(runs[row.name], "recall_at_1"))
    body = []
    for row in measured:
        run = runs[row.name]
        cells = [f"{last(run, metric):.{digits}f}" for metric, (_, digits) in METRICS.items()]
        body.append([f"`{row.command}`", *cells, _milliseconds(run["step_time"])])
    untrained = next(iter(runs.values()))["evaluations"][0]
    cells = [f"{untrained[metric]:.{digits}f}" for metric, (_, digits) in METRICS.items()]
    body.append(["untrained network", *cells, ""])
    return grid(["loss", *(title for title, _ in METRICS.values()), "step time"], body)


def _place(value: float, others: list[float]) -> str:
    """Where a value stands among all; those that one seed cannot tell from the best share its place."""
    best = max(others)
    if value == best:
        return "the best R@1"
    if best - value <= CLOSE:
        return f"R@1 within {CLOSE:g} of the best"
    return f"R@1 {best - value:.2f} below the best"


def choice(results: dict[str, Any]) -> str:
    """One sentence each on when to choose which, with what was measured."""
    runs: Runs = results["runs"]
    known = [row for row in ROWS if row.name in runs]
    recalls = [last(runs[row.name], "recall_at_1") for row in known]
    ranks = sorted((last(runs[row.name], "effective_rank") for row in known), reverse=True)
    fastest = min(runs[row.name]["step_time"] for row in known)
    lines = []
    for row, recall in zip(known, recalls, strict=True):
        run = runs[row.name]
        rank = ranks.index(last(run, "effective_rank")) + 1
        slower = run["step_time"] / fastest
        cost = "the cheapest step" if slower == 1 else f"a step of {slower:.1f} times the cheapest"
        place = f"{_place(recall, recalls)}, effective rank {rank} of {len(known)}, {cost}"
        lines.append(f"- `{row.command}`: {row.choose}; here {place}.")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "losses:settings": settings,
    "losses:rows": rows,
    "losses:choice": choice,
}


def measured() -> dict[str, Any]:
    return read_json(FILE)
