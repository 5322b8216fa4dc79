"""The pictures in a run's folder: curves, the spectrum of the embeddings, and queries with their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dmlkernels import metrics
from dmlkernels.data import RetrievalData
from dmlkernels.train.config import require, write_atomically

BEFORE, AFTER = "#9aa5b1", "#1f5fa8"
RIGHT, WRONG, QUERY = (34, 139, 58), (205, 38, 38), (60, 60, 60)
NEIGHBORS, ROWS = 8, 7
CELL, FRAME, GAP = 60, 5, 6  # pixels of the sheet


def new_figure(width: float, height: float) -> Any:
    """A figure for a file: without pyplot, so that no display is looked for and no global state changes."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=140))


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Running mean over a twentieth of the run, shorter at both ends."""
    half = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def curves(path: Path, result: dict[str, Any]) -> None:
    """The loss of every step, and R@1 on unseen classes at every evaluation."""
    figure = new_figure(11, 4)
    left, right = figure.subplots(1, 2)
    losses = result["history"]["loss"]
    steps = np.arange(1, len(losses) + 1)
    left.plot(steps, losses, color=AFTER, alpha=0.3, linewidth=0.9, label="each step")
    left.plot(steps, _smooth(losses), color=AFTER, linewidth=2, label="running mean")
    left.set(title=f"training loss ({result['method']})", xlabel="step")
    left.legend(frameon=False)
    at, recall = zip(*result["history"]["recall_at_1"], strict=True)
    right.plot(at, recall, color=AFTER, marker="o", linewidth=2)
    right.axhline(recall[0], color=BEFORE, linestyle="--", linewidth=1.2)
    right.text(at[-1], recall[0], "untrained network ", color="#66707a", ha="right", va="bottom")
    right.annotate(
        f"{recall[-1]:.3f}", (at[-1], recall[-1]), xytext=(0, 7), textcoords="offset points", ha="center", weight="bold"
    )
    right.set(title="R@1 on unseen classes", xlabel="step")
    right.margins(y=0.14)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def spectrum(path: Path, before: Sequence[float], after: Sequence[float], result: dict[str, Any]) -> None:
    """Singular values of the test embeddings on a log scale: collapse is a curve that falls off a cliff."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    lowest = 1.0
    for name, values, color in (("before", before, BEFORE), ("after", after, AFTER)):
        shares = np.asarray(values) / max(values[0], 1e-30)
        # Below this the covariance holds only rounding, and a log scale would be all cliff.
        shares = np.maximum(shares, 1e-6)
        lowest = min(lowest, shares[-1])
        label = f"{name} training, effective rank {result[f'effective_rank_{name}']:.1f} of {len(values)}"
        axes.semilogy(np.arange(1, len(values) + 1), shares, color=color, linewidth=2, label=label)
    axes.set(
        title="spectrum of the embeddings of unseen classes",
        xlabel="place of the singular value",
        ylabel="relative to the largest",
        ylim=(min(0.05, lowest / 1.5), 1.2),
    )
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    save(figure, path)


def _cells(images: Tensor, colors: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Images (b, C, H, W) in [0, 1] as framed squares (b, side, side, 3) of bytes; a wrong one has a corner cut too."""
    inner = CELL - 2 * FRAME
    rgb = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    rgb = interpolate(rgb, size=(inner, inner), mode="bilinear", antialias=True).clamp(0, 1)
    cells = np.empty((len(images), CELL, CELL, 3), np.uint8)
    cells[:] = np.asarray(colors, np.uint8)[:, None, None]
    cells[:, FRAME:-FRAME, FRAME:-FRAME] = (255 * rgb).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    row, column = np.indices((CELL, CELL))
    corner = (CELL - 1 - column) + row < 16
    wrong = np.array([color == WRONG for color in colors])
    cells[np.ix_(wrong, np.arange(CELL), np.arange(CELL))] = np.where(
        corner[None, :, :, None], np.asarray(WRONG, np.uint8), cells[wrong]
    )
    return cells


def sheet(data: RetrievalData, queries: Sequence[int], nearest: Tensor) -> np.ndarray:
    """One row for each query: its image, then its neighbours (q, k), framed green or red; (height, width, 3) bytes."""
    items = data.test if data.gallery is None else data.gallery
    k = nearest.shape[1]
    canvas = np.full((len(queries) * (CELL + GAP) - GAP, (k + 1) * (CELL + GAP) + GAP, 3), 255, np.uint8)
    for row, query in enumerate(queries):
        own = data.test.labels[query]
        colors = [QUERY, *(RIGHT if items.labels[item] == own else WRONG for item in nearest[row])]
        images = torch.cat([data.test.batch(torch.tensor([query])), items.batch(nearest[row])])
        top = row * (CELL + GAP)
        for column, cell in enumerate(_cells(images, colors)):
            left = column * (CELL + GAP) + (2 * GAP if column else 0)
            canvas[top : top + CELL, left : left + CELL] = cell
    return canvas


def find_neighbors(data: RetrievalData, queries: Tensor, gallery: Tensor | None, k: int = NEIGHBORS) -> Tensor:
    """Nearest items of each embedding (M, k), fewer where the gallery is smaller."""
    available = len(queries) - 1 if gallery is None else len(gallery)
    return metrics.neighbors(queries, min(k, available), gallery)


def show_sheet(axes: Any, canvas: np.ndarray, title: str) -> None:
    axes.imshow(canvas, interpolation="antialiased")
    axes.set_title(title + "\n", loc="left", fontsize=11)  # the empty line is for the two captions below
    axes.text(CELL / 2, -8, "query", ha="center", va="bottom", fontsize=8)
    axes.text(CELL + 3 * GAP, -8, "nearest first", ha="left", va="bottom", fontsize=8)
    axes.set_axis_off()


def neighbors(path: Path, data: RetrievalData, queries: Tensor, gallery: Tensor | None, seed: int) -> None:
    """Two columns of queries: drawn at random among all, and drawn among those whose nearest neighbour is wrong."""
    nearest = find_neighbors(data, queries, gallery)
    items = data.test if data.gallery is None else data.gallery
    missed = (items.labels[nearest[:, 0]] != data.test.labels).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    any_query = torch.randperm(len(queries), generator=generator)[:ROWS]
    hard = missed[torch.randperm(len(missed), generator=generator)[:ROWS]]
    groups = [(f"queries drawn at random from {len(queries):,}", any_query)]
    if len(hard):
        groups.append((f"drawn from the {len(missed):,} with a wrong nearest neighbour", hard))
    width = ((nearest.shape[1] + 1) * (CELL + GAP) + GAP) / 100
    height = max(len(chosen) for _, chosen in groups) * (CELL + GAP) / 100
    figure = new_figure(width * len(groups) + 0.6, height + 0.75)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (title, chosen) in zip(panels, groups, strict=True):
        show_sheet(axes, sheet(data, chosen.tolist(), nearest[chosen]), title)
    figure.suptitle("neighbours in unseen classes: green frame, same class; red frame with a corner, another class")
    save(figure, path)
