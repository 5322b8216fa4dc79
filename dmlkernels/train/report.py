"""What a run prints at its end: retrieval on unseen classes, and what the loss costs."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

NO_KERNELS = "No compiled kernels ran: fused and reference are both plain PyTorch (see `python -m dmlkernels info`)."


def table(rows: Sequence[Sequence[str]], headings: int = 1) -> str:
    """Rows as aligned text: the first ones a heading, the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    lines.insert(headings, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms"


def megabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:,.1f} MB"


def ratio(fused: float | None, reference: float | None) -> str:
    return f"{reference / fused:.1f}×" if reference and fused else "–"


COSTS: tuple[tuple[str, str, Callable[..., str]], ...] = (
    ("time", "step_time", milliseconds),
    ("peak extra memory", "peak_extra_bytes", megabytes),
)


def summary(result: dict[str, Any], folder: object) -> str:
    """The table of one run."""
    retrieval = [["unseen classes", "R@1", "R@2", "R@4", "MAP@R", "effective rank"]]
    names = ("recall_at_1", "recall_at_2", "recall_at_4", "map_at_r")
    for moment in ("before", "after"):
        row = [f"{moment} training", *(f"{result[f'{name}_{moment}']:.4f}" for name in names)]
        retrieval.append([*row, f"{result[f'effective_rank_{moment}']:.1f}"])
    cost = [["loss, forward + backward", "fused", "reference", "ratio"]]
    for name, key, show in COSTS:
        fused, reference = result[f"{key}_fused"], result[f"{key}_reference"]
        cost.append([name, show(fused), show(reference), ratio(fused, reference)])
    others = "held-out training classes" if result["config"]["validate"] else "others"
    lines = [
        f"\nTrained on {result['train_images']:,} images of {result['train_classes']:,} classes, "
        f"tested on {result['test_images']:,} images of {result['test_classes']:,} {others} "
        f"({result['seconds_training']:.0f} s of training, seed {result['seed']}).\n",
        table(retrieval),
        f"\nOne batch of {result['batch']:,} embeddings:\n",
        table(cost),
    ]
    if result["peak_extra_bytes_fused"] is None:
        lines.append("\nPeak memory is unknown: this system offers no high-water mark that can be reset.")
    if result["wrong_labels"]:
        noise = f"--label-noise {result['config']['label_noise']:g}"
        lines.append(f"\n{result['wrong_labels']:,} of {result['train_images']:,} training labels are wrong ({noise}).")
    if not result["fused_kernels"]:
        lines.append(f"\n{NO_KERNELS}")
    return "\n".join([*lines, f"\nmetrics.json, curves.png, spectrum.png and neighbors.png are in {folder}"])


def versions() -> dict[str, str]:
    """Of what a result depends on, for a bug report."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__}
    for package in ("dmlkernels", "numpy", "pillow", "matplotlib"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
