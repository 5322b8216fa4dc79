"""Four short runs with one seed: what easy positives change when labels are coarser than what is looked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from dmlkernels.data import RetrievalData, load, merge_classes
from dmlkernels.train import pictures, report
from dmlkernels.train.config import JobError, TrainConfig, write_json
from dmlkernels.train.job import Outcome, run

FULL = {"steps": 64, "batch": 2048, "evaluations": 4}
QUICK = {"steps": 24, "batch": 1024, "evaluations": 2}
MERGED = 4
NOISE = 0.01
RESULTS = ("demo.png", "demo.json")
METHODS = {"all": "RLL, all positives", "easy": "RLL, easy positives"}
LABELS = {"fine": "fine labels", "merged": f"{MERGED} classes merged"}
COLORS = {"all": "#d1792b", "easy": "#1f5fa8"}
ROWS = 6
Runs = dict[tuple[str, str], Outcome]


def main(given: dict[str, Any]) -> None:
    """Run the demo with the command line's options; it writes ``demo.png`` and ``demo.json`` beside the four runs."""
    out: Path = given.get("out", Path("runs") / "demo")
    options: dict[str, Any] = {name: given[name] for name in ("seed", "device", "backend", "batch") if name in given}
    scale = QUICK if given.get("quick") else FULL
    options["steps"] = given.get("steps", scale["steps"])
    options["epoch_steps"] = -(-options["steps"] // scale["evaluations"])
    options["data"] = given.get("data", "glyphs")
    base = TrainConfig(**options)
    data = load(base.data, seed=base.seed)
    merged = len(merge_classes(data.train.labels, MERGED, base.seed).unique())
    # All four runs see batches of one size, so it is the coarse labels that set it.
    options.setdefault("batch", min(scale["batch"], merged * base.samples_per_class))
    if merged < 2:
        raise JobError(f"{base.data} has too few classes to merge {MERGED} at a time")
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    runs: Runs = {}
    for labels in LABELS:
        for method in METHODS:
            print(f"{LABELS[labels]}; {METHODS[method]}", file=sys.stderr, flush=True)
            config = TrainConfig(
                **options, easy_positive=method == "easy", merge_classes=MERGED if labels == "merged" else 1
            )
            runs[labels, method] = run(config, out / f"{labels}-{method}", data=data)
    picture(out / RESULTS[0], data, runs)
    write_json(out / RESULTS[1], {"-".join(key): outcome.result for key, outcome in runs.items()})
    print(summary(runs))
    print(f"\ndemo.png and demo.json are in {out}, beside a folder for each run.")


def _recall(runs: Runs, labels: str, method: str) -> float:
    return runs[labels, method].result["recall_at_1_after"]


def summary(runs: Runs) -> str:
    """The 2 × 2 table, the costs, and what they show."""
    first = runs["fine", "all"].result
    grid = [["R@1 on unseen classes", *LABELS.values()]]
    for method, title in METHODS.items():
        grid.append([title, *(f"{_recall(runs, labels, method):.3f}" for labels in LABELS)])
    costs = [["loss, forward + backward", "fused", "reference", "ratio", "fused", "reference"]]
    for (labels, method), outcome in runs.items():
        result = outcome.result
        times = result["step_time_fused"], result["step_time_reference"]
        peaks = result["peak_extra_bytes_fused"], result["peak_extra_bytes_reference"]
        shown = [*map(report.milliseconds, times), report.ratio(*times), *map(report.megabytes, peaks)]
        costs.append([f"{LABELS[labels]}; {METHODS[method]}", *shown])
    lines = [
        f"\nTested on {first['test_images']:,} images of {first['test_classes']:,} single classes that no run saw; "
        f"untrained network {first['recall_at_1_before']:.3f}; {first['config']['steps']} steps of "
        f"{first['batch']:,} images; one seed ({first['seed']}).\n",
        report.table(grid),
        f"\nStep time and peak extra memory of the loss on a batch of {first['batch']:,} embeddings:\n",
        report.table(costs),
        "",
        *(_verdict(runs, labels) for labels in LABELS),
        "One seed: differences under 1 point are noise.",
    ]
    if not first["fused_kernels"]:
        lines.append(report.NO_KERNELS)
    return "\n".join(lines)


def _verdict(runs: Runs, labels: str) -> str:
    gain = _recall(runs, labels, "easy") - _recall(runs, labels, "all")
    where = f"With {LABELS[labels]}"
    if abs(gain) < NOISE:
        return f"{where}, easy positives make no difference that one seed can show ({100 * gain:+.1f} points of R@1)."
    return f"{where}, easy positives {'gain' if gain > 0 else 'lose'} {100 * abs(gain):.1f} points of R@1."


def picture(path: Path, data: RetrievalData, runs: Runs) -> None:
    """R@1 of the four runs, their curves, what the loss costs, and the same queries under both merged runs."""
    figure = pictures.new_figure(14, 9.7)
    top, bottom = figure.subfigures(2, 1, height_ratios=(4.4, 5.3))
    first = runs["fine", "all"].result
    top.suptitle(
        f"{data.name}, {first['config']['steps']} steps of {first['batch']:,} images, seed {first['seed']}",
        weight="bold",
    )
    bars, curves, costs = top.subplots(1, 3, width_ratios=(1, 1.15, 1))
    _recall_bars(bars, runs)
    _recall_curves(curves, runs)
    _cost_bars(costs, runs)
    generator = torch.Generator().manual_seed(first["seed"])
    chosen = torch.randperm(len(data.test), generator=generator)[:ROWS]
    bottom.suptitle(
        f"trained on {LABELS['merged']}: the same random queries, nearest neighbours first "
        "(green: same class; red with a corner: another)",
        fontsize=11,
    )
    for axes, (method, title) in zip(bottom.subplots(1, 2), METHODS.items(), strict=True):
        outcome = runs["merged", method]
        nearest = pictures.find_neighbors(data, outcome.queries, outcome.gallery)[chosen]
        pictures.show_sheet(axes, pictures.sheet(data, chosen.tolist(), nearest), title)
    pictures.save(figure, path)


def _recall_bars(axes: Any, runs: Runs) -> None:
    for shift, (method, title) in zip((-0.2, 0.2), METHODS.items(), strict=True):
        values = [_recall(runs, labels, method) for labels in LABELS]
        places = [place + shift for place in range(len(LABELS))]
        drawn = axes.bar(places, values, 0.38, color=COLORS[method], label=title)
        axes.bar_label(drawn, fmt="%.3f", padding=2)
    before = runs["fine", "all"].result["recall_at_1_before"]
    axes.axhline(before, color=pictures.BEFORE, linestyle="--", linewidth=1.2, label="untrained network")
    axes.set_xticks(range(len(LABELS)), LABELS.values())
    axes.set(title="R@1 on single unseen classes", ylim=(0, 1.32), yticks=(0, 0.2, 0.4, 0.6, 0.8, 1.0))
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _recall_curves(axes: Any, runs: Runs) -> None:
    for (labels, method), outcome in runs.items():
        at, recall = zip(*outcome.result["history"]["recall_at_1"], strict=True)
        style = "-" if labels == "fine" else "--"
        axes.plot(at, recall, style, color=COLORS[method], marker="o", label=f"{labels} labels, {method} positives")
    axes.set(title="R@1 while training", xlabel="step", ylim=(0, 1.32), yticks=(0, 0.2, 0.4, 0.6, 0.8, 1.0))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper left", fontsize=8, ncols=2, columnspacing=1.0, handlelength=2.8)
    axes.spines[["top", "right"]].set_visible(False)


def _cost_bars(axes: Any, runs: Runs) -> None:
    """Time and memory of the merged runs, as shares of the reference's, with the numbers written out."""
    rows: list[tuple[str, str, float, str, str]] = []
    for method in METHODS:
        result = runs["merged", method].result
        for what, key, show in report.COSTS:
            fused, reference = result[f"{key}_fused"], result[f"{key}_reference"]
            share = fused / reference if fused and reference else 0.0
            rows.append((f"{what},\n{method} positives", method, share, show(fused), show(reference)))
    places = range(len(rows))
    axes.barh(places, [1.0] * len(rows), 0.62, color="#dfe3e8")
    axes.barh(places, [row[2] for row in rows], 0.62, color=[COLORS[row[1]] for row in rows])
    for place, (_, _, share, fused, reference) in zip(places, rows, strict=True):
        axes.text(share + 0.02, place, fused, va="center", weight="bold", fontsize=9)
        axes.text(1.02, place, reference, va="center", fontsize=9)
    axes.set_yticks(places, [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(title="the loss: fused (colour), eager (grey)", xlim=(0, 1.4), xticks=())
    axes.spines[["top", "right", "bottom"]].set_visible(False)
