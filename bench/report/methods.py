"""Tables of what bench/studies/methods.py trained, for docs/methods.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from bench.report.tables import RESULTS, grid, last, read_json
from dmlkernels.train.rows import MERGED, ROWS

FILE = RESULTS / "methods.json"
METRICS = {
    "recall_at_1": ("R@1", 3),
    "map_at_r": ("MAP@R", 3),
    "effective_rank": ("effective rank", 1),
    "mean_pos_distance": ("positive distance", 3),
    "mean_neg_distance": ("negative distance", 3),
}
CLAIMS = {
    "Anti-Collapse": ("rll-anti-collapse", "rll", ("effective_rank", "recall_at_1", "map_at_r")),
    f"easy positives, {MERGED} classes merged": ("merged-rll-easy", "merged-rll", ("recall_at_1", "map_at_r")),
    "spherical expansion": ("proxy-anchor-expansion", "proxy-anchor", ("recall_at_1", "map_at_r")),
}
Runs = dict[str, dict[str, Any]]


def _seeds(runs: Runs, row: str) -> list[dict[str, Any]]:
    """The runs of a row, by seed."""
    return [run for name, run in runs.items() if name.partition(",")[0] == row]


def _spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean ± deviation of the seeds; of one seed, its value."""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.{digits}f}{deviation}"


def _label(row: Any) -> str:
    return f"{row.title}, {MERGED} classes merged" if row.merged else row.title


def settings(results: dict[str, Runs]) -> str:
    """What all the runs share, from their configurations."""
    runs = results["rows"].values()
    first = next(iter(runs))
    config = first["config"]
    steps = {run["config"]["loss"]: run["config"]["steps"] for run in runs}
    seeds = sorted({run["config"]["seed"] for run in runs})
    return (
        f"{len(seeds)} seeds; batches of {config['batch']}, {config['samples_per_class']} of a class; "
        f"{steps['ranked_list']} steps for the RLL rows and {steps['proxy_anchor']} for the proxy rows; AdamW, "
        f"one-cycle to {config['lr']:g}; {config['features']} features. Trained on {first['train_classes']:,} classes, "
        f"tested on {first['test_images']:,} images of {first['test_classes']:,} others."
    )


def rows(results: dict[str, Runs]) -> str:
    """The six rows: mean ± deviation of the seeds."""
    body = []
    for row in ROWS:
        runs = _seeds(results["rows"], row.name)
        cells = [_spread([last(run, metric) for run in runs], digits) for metric, (_, digits) in METRICS.items()]
        body.append([_label(row), *cells])
    untrained = [run["evaluations"][0] for run in _seeds(results["rows"], ROWS[0].name)]
    cells = [_spread([found[metric] for found in untrained], digits) for metric, (_, digits) in METRICS.items()]
    return grid(["", *(title for title, _ in METRICS.values())], [*body, ["untrained network", *cells]])


def claims(results: dict[str, Runs]) -> str:
    """What each method changes, seed by seed against the same seed without it."""
    body = []
    for method, (row, base, metrics) in CLAIMS.items():
        pairs = list(zip(_seeds(results["rows"], row), _seeds(results["rows"], base), strict=True))
        for metric in metrics:
            title, digits = METRICS[metric]
            gains = [last(run, metric) - last(other, metric) for run, other in pairs]
            higher = sum(gain > 0 for gain in gains)
            body.append([method, title, _spread(gains, digits, "+"), f"{higher} of {len(gains)} seeds"])
    return grid(["method", "measure", "change", "higher in"], body)


def validation(results: dict[str, Runs]) -> str:
    """Every setting that was tried, on held-out training classes."""
    metrics = ("recall_at_1", "map_at_r", "effective_rank")
    body = []
    for name, run in results["validation"].items():
        body.append([name, *(f"{last(run, metric):.{METRICS[metric][1]}f}" for metric in metrics)])
    first = next(iter(results["validation"].values()))
    caption = (
        f"One seed, {first['train_classes']:,} training classes, tested on {first['test_images']:,} images of the "
        f"{first['test_classes']:,} that were held out:"
    )
    return f"{caption}\n\n{grid(['setting', *(METRICS[metric][0] for metric in metrics)], body)}"


def training(results: dict[str, Runs]) -> str:
    """Coding rate and effective rank of the test embeddings through the training of the first seed."""
    first = [(row, _seeds(results["rows"], row.name)[0]["evaluations"]) for row in ROWS]
    count = len(first[0][1])
    body = []
    for metric, title in (("coding_rate", "coding rate R"), ("effective_rank", "effective rank")):
        for row, evaluations in first:
            body.append([title, _label(row), *(f"{found[metric]:.1f}" for found in evaluations)])
    shares = [f"{place}/{count - 1} of the steps" for place in range(1, count - 1)]
    return grid(["", "", "untrained", *shares, "trained"], body)


def _beside(results: dict[str, Runs], group: str, names: tuple[str, str]) -> str:
    """R@1, MAP@R and effective rank of the rows, and of a group of runs that differ from them in one setting."""
    metrics = ("recall_at_1", "map_at_r", "effective_rank")
    body, seeds = [], 0
    for row in ROWS:
        if changed := _seeds(results[group], row.name):
            seeds = len(changed)
            pair = (_seeds(results["rows"], row.name)[:seeds], changed)
            cells = [
                _spread([last(run, metric) for run in runs], METRICS[metric][1]) for metric in metrics for runs in pair
            ]
            body.append([_label(row), *cells])
    compared = grid(["", *(f"{METRICS[metric][0]}, {name}" for metric in metrics for name in names)], body)
    return f"Seeds: {seeds}.\n\n{compared}"


def noise(results: dict[str, Runs]) -> str:
    share = next(iter(results["noise"].values()))["config"]["label_noise"]
    return _beside(results, "noise", ("clean", f"{100 * share:g} % wrong"))


def features(results: dict[str, Runs]) -> str:
    few = next(iter(results["features"].values()))["config"]["features"]
    many = next(iter(results["rows"].values()))["config"]["features"]
    return _beside(results, "features", (f"{many}", f"{few}"))


BLOCKS: dict[str, Callable[[dict[str, Runs]], str]] = {
    "methods:settings": settings,
    "methods:rows": rows,
    "methods:claims": claims,
    "methods:validation": validation,
    "methods:training": training,
    "methods:noise": noise,
    "methods:features": features,
}


def measured() -> dict[str, Runs]:
    return read_json(FILE)["runs"]
