"""The losses that bench/studies/losses.py trains, and their tables in docs/losses.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from bench.report.kernels import render_machine
from bench.report.tables import RESULTS, grid, read_json

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
ROWS = (
    _row("for retrieval: it stops pulling at a distance, so a class keeps its spread", "ranked_list"),
    _row("if the batch that fits is small: it adds the negatives of earlier batches", "ranked_list", memory=2048),
    _row("as a baseline, and where the application compares distances with a fixed threshold", "contrastive"),
    _row("where classes need boundaries of their own, which it can learn (`--learn-beta`)", "margin"),
    _row("as the best known baseline; its hard positives want clean labels", "triplet"),
    _row(
        "if a class has several kinds of images, or a label several classes",
        "triplet",
        easy_positive=True,
        loss_options=EASY_SEMIHARD,
    ),
    _row("if the hardest negatives of a clean data set should count most", "multi_similarity"),
    _row("for pairs: two views of an image, or a question and its answer", "ntxent"),
    _row("for labelled classes with many positives in a batch, all of which should count", "supcon"),
    _row("if a pair should count the more, the farther it is from where it belongs", "circle"),
    _row("if all pairs of a row should count smoothly, with a margin", "lifted"),
    _row("if near positives suffice, as for a nearest-neighbour classifier", "nca"),
    _row("if batches are too small for pairs and classes few enough for proxies", "proxy_nca"),
    _row("as that one, with hard samples counting more, and time for proxies to settle", "proxy_anchor"),
    _row("as the proxy losses, for classes of several kinds of images", "soft_triple"),
    _row("if classes should span subspaces and not be points", "mcr2"),
)
Runs = dict[str, dict[str, Any]]


def _last(run: dict[str, Any], metric: str) -> float:
    return run["evaluations"][-1][metric]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


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
    measured = sorted((row for row in ROWS if row.name in runs), key=lambda row: -_last(runs[row.name], "recall_at_1"))
    body = []
    for row in measured:
        run = runs[row.name]
        cells = [f"{_last(run, metric):.{digits}f}" for metric, (_, digits) in METRICS.items()]
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
    recalls = [_last(runs[row.name], "recall_at_1") for row in known]
    ranks = sorted((_last(runs[row.name], "effective_rank") for row in known), reverse=True)
    fastest = min(runs[row.name]["step_time"] for row in known)
    lines = []
    for row, recall in zip(known, recalls, strict=True):
        run = runs[row.name]
        rank = ranks.index(_last(run, "effective_rank")) + 1
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
