"""Six short runs with one seed: four methods of metric learning in one table and one picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from dmlkernels.data import RetrievalData, load, merge_classes
from dmlkernels.train import pictures, report, verdicts
from dmlkernels.train.config import JobError, TrainConfig, write_json
from dmlkernels.train.job import Job, Outcome, run
from dmlkernels.train.labels import keep_test_classes
from dmlkernels.train.rows import LR, MERGED, ROWS, Row

FULL = {"steps": 100, "batch": 1024}
QUICK = {"steps": 12, "batch": 512}
QUICK_CLASSES = 200  # that a quick demo tests on
RESULTS = ("demo.png", "demo.json")
LABELS = {False: "fine labels", True: f"{MERGED} classes merged"}
COLORS = ("#d1792b", "#1f5fa8", "#7a4fa3", "#b04a6f", "#d1792b", "#2f8f5b")
SHEETS = ("merged-rll", "merged-rll-easy")
QUERIES = 6
Runs = dict[str, Outcome]


def main(given: dict[str, Any]) -> None:
    """Run the demo with the command line's options; it writes ``demo.png`` and ``demo.json`` beside the six runs."""
    out: Path = given.get("out", Path("runs") / "demo")
    scale = QUICK if given.get("quick") else FULL
    options: dict[str, Any] = {"data": "glyphs", "steps": scale["steps"], "lr": LR}
    options |= {name: given[name] for name in ("data", "steps", "seed", "device", "backend", "batch") if name in given}
    options["epoch_steps"] = options["steps"]
    base = TrainConfig(**options)
    data = load(base.data, seed=base.seed)
    if given.get("quick"):
        data = keep_test_classes(data, QUICK_CLASSES)
    merged = len(merge_classes(data.train.labels, MERGED, base.seed).unique())
    if merged < 2:
        raise JobError(f"{base.data} has too few classes to merge {MERGED} at a time")
    # All six runs see batches of one size, so it is the coarse labels that set it.
    options.setdefault("batch", min(scale["batch"], merged * base.samples_per_class))
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    configs = {row.name: TrainConfig(**options, **row.settings) for row in ROWS}
    # One seed gives all six the same network to start with; a batch too large for coarse labels stops the demo here.
    before = Job(configs[ROWS[-1].name], out, data).evaluate()
    runs: Runs = {}
    for row in ROWS:
        print(title(row), file=sys.stderr, flush=True)
        runs[row.name] = run(configs[row.name], out / row.name, data=data, before=before, draw=False)
    picture(out / RESULTS[0], data, runs)
    results = {name: outcome.result for name, outcome in runs.items()}
    write_json(out / RESULTS[1], results)
    print(summary(results))
    print(f"\ndemo.png and demo.json are in {out}, beside a folder for each run.")


def title(row: Row) -> str:
    return f"{LABELS[row.merged]}: {row.title}"


def summary(results: dict[str, dict[str, Any]]) -> str:
    """The table of six rows, and what it shows."""
    first = results[ROWS[0].name]
    grid = [
        ["", "R@1", "MAP@R", "effective", "distance", "distance", "loss step", "", "loss memory", ""],
        ["", "", "", "rank", "positive", "negative", "fused", "eager", "fused", "eager"],
    ]
    for row in ROWS:
        result = results[row.name]
        cells = [f"{result[f'{name}_after']:.3f}" for name in ("recall_at_1", "map_at_r")]
        cells.append(f"{result['effective_rank']:.1f}")
        cells += [f"{result[f'mean_{sign}_distance_after']:.3f}" for sign in ("pos", "neg")]
        for _, key, show in report.COSTS:
            cells += [show(result[f"{key}_{backend}"]) for backend in ("fused", "reference")]
        grid.append([title(row), *cells])
    lines = [
        f"\nTested on {first['test_images']:,} images of {first['test_classes']:,} single classes that no run saw; "
        f"untrained network: R@1 {first['recall_at_1_before']:.3f}, effective rank "
        f"{first['effective_rank_before']:.1f}.",
        f"{first['config']['steps']} steps of {first['batch']:,} images, AdamW one-cycle to {first['config']['lr']:g}, "
        f"one seed ({first['seed']}). Step time and peak extra memory are the loss's, forward and backward.\n",
        report.table(grid, headings=2),
        "",
        *verdicts.of_one_seed(results),
        "One seed: differences under 1 point of R@1 are noise. Proxy losses need about three times these steps here "
        "(docs/methods.md has three seeds and longer runs).",
        "The effective rank is a diagnostic, not a score: the highest one is not the best retrieval.",
    ]
    if not first["fused_kernels"]:
        lines.append(report.NO_KERNELS)
    return "\n".join(lines)


def picture(path: Path, data: RetrievalData, runs: Runs) -> None:
    """The table as bars, and the same queries under both merged runs."""
    figure = pictures.new_figure(15, 9.2)
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.0, 5.2))
    results = {name: outcome.result for name, outcome in runs.items()}
    first = results[ROWS[0].name]
    top.suptitle(
        f"{data.name}, {first['config']['steps']} steps of {first['batch']:,} images, seed {first['seed']}; "
        "tested on single unseen classes",
        weight="bold",
    )
    panels = top.subplots(1, 4, sharey=True, width_ratios=(1.2, 1, 1, 1.2))
    for axes, draw in zip(panels, (_retrieval, _ranks, _distances, _costs), strict=True):
        draw(axes, [results[row.name] for row in ROWS])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(ROWS)), [title(row).replace(": ", "\n") for row in ROWS])
    panels[0].invert_yaxis()
    generator = torch.Generator().manual_seed(first["seed"])
    chosen = torch.randperm(len(data.test), generator=generator)[:QUERIES]
    bottom.suptitle(
        f"trained with {LABELS[True]}: the same random queries, nearest neighbours first "
        "(green: same class; red with a corner: another)",
        fontsize=11,
    )
    sheets = [row for row in ROWS if row.name in SHEETS]
    for axes, row in zip(bottom.subplots(1, len(sheets)), sheets, strict=True):
        outcome = runs[row.name]
        nearest = pictures.find_neighbors(data, outcome.queries, outcome.gallery)[chosen]
        pictures.show_sheet(axes, pictures.sheet(data, chosen.tolist(), nearest), row.title)
    pictures.save(figure, path)


def _retrieval(axes: Any, results: list[dict[str, Any]]) -> None:
    for shift, name, alpha in ((-0.2, "recall_at_1", 1.0), (0.2, "map_at_r", 0.45)):
        values = [result[f"{name}_after"] for result in results]
        drawn = axes.barh([place + shift for place in range(len(values))], values, 0.36, color=COLORS, alpha=alpha)
        axes.bar_label(drawn, fmt="%.3f", padding=2, fontsize=8)
    before = results[0]["recall_at_1_before"]
    axes.axvline(before, color=pictures.BEFORE, linestyle="--", linewidth=1.2, label="R@1, untrained")
    axes.set(title="R@1 (above), MAP@R (below)", xlim=(0, 1.2), xticks=(0, 0.5, 1.0))
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _ranks(axes: Any, results: list[dict[str, Any]]) -> None:
    values = [result["effective_rank"] for result in results]
    drawn = axes.barh(range(len(values)), values, 0.6, color=COLORS)
    axes.bar_label(drawn, fmt="%.1f", padding=2, fontsize=8)
    before = results[0]["effective_rank_before"]
    axes.axvline(before, color=pictures.BEFORE, linestyle="--", linewidth=1.2, label="untrained")
    axes.set(title="effective rank (no score)", xlim=(0, 1.2 * max(*values, before)))
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _distances(axes: Any, results: list[dict[str, Any]]) -> None:
    for place, (result, color) in enumerate(zip(results, COLORS, strict=True)):
        ends = [result[f"mean_{sign}_distance_after"] for sign in ("pos", "neg")]
        axes.plot(ends, [place, place], color=color, linewidth=2)
        axes.plot(ends[:1], [place], "o", color=color)
        axes.plot(ends[1:], [place], "o", color=color, markerfacecolor="white")
    axes.set(title="mean distance: positive ●, negative ○", xlim=(0, 1.6), xticks=(0, 0.5, 1.0, 1.5))


def _costs(axes: Any, results: list[dict[str, Any]]) -> None:
    """Time (above) and memory (below) of the loss, as shares of the eager reference's, with the numbers written out."""
    for place, (result, color) in enumerate(zip(results, COLORS, strict=True)):
        for shift, alpha, (_, key, show) in zip((-0.2, 0.2), (1.0, 0.45), report.COSTS, strict=True):
            fused, reference = result[f"{key}_fused"], result[f"{key}_reference"]
            share = min(1.0, fused / reference) if fused and reference else 0.0
            axes.barh(place + shift, 1.0, 0.36, color="#e6e9ed")
            axes.barh(place + shift, share, 0.36, color=color, alpha=alpha)
            text = f"{show(fused)} of {show(reference)}"
            axes.text(1.03, place + shift, text, va="center", fontsize=8)
    axes.set(title="fused loss, of the eager one (grey):\ntime (above), memory (below)", xlim=(0, 1.9), xticks=())
    axes.spines["bottom"].set_visible(False)
