"""Tables of what bench/kernels measured on a device: goals, losses beside their peers, and every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.report.tables import RESULTS, grid, read_json

NAMES = {
    "fused": "**dmlkernels**",
    "triton": "**dmlkernels, Triton**",
    "reference": "eager PyTorch",
    "compiled": "torch.compile",
    "peer": "pytorch-metric-learning",
    "mcr2_loop": "public MCR² loop",
    "logdet": "eager `torch.logdet`",
    "product": "one torch.mm (`t_gemm`)",
}
KINDS = {"dense": "dense", "sparse": "sparse", "spread": "sparse, no tile empty", "collapsed": "collapsed"}


def _digits(value: float) -> str:
    """Three significant digits, no exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _seconds(quantiles: Sequence[float]) -> str:
    """Median and range, in one unit."""
    unit, scale = ("s", 1.0) if quantiles[1] >= 1 else ("ms", 1e3)
    low, median, high = (_digits(value * scale) for value in quantiles)
    return f"{median} {unit} ({low}–{high})"


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{_digits(value / 1e9)} GB" if value >= 1e9 else f"{_digits(value / 1e6)} MB"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else _digits(value)


def _percent(share: float) -> str:
    return f"{_digits(100 * share)} %" if share >= 1e-4 else "0 %" if share == 0 else "< 0.01 %"


def render_machine(results: dict) -> str:
    m = results["machine"]
    gpu = f"{m['gpu']}; " if "gpu" in m else ""
    return (
        f"{gpu}{m['cpu']}, {m['cores']} cores, {m['memory_gb']} GB, {m['isa']}; threads: {m['threads']}; "
        f"torch {m['torch']}, dmlkernels {m['dmlkernels']} at {m['commit']}; load {m['load']} before the run"
    )


def render_goals(results: dict) -> str:
    """What was aimed at, and what is reached; the goals of the losses beside their peers have a table of their own."""
    rows = []
    for goal in results["goals"]:
        if goal.get("beside_peer"):
            continue
        measured = "not measured"
        if goal["value"] is not None:
            low, high = _ratio(goal["low"]), _ratio(goal["high"])
            measured = f"**{_ratio(goal['value'])}{goal['unit']}**" + (f" ({low}–{high})" if low != high else "")
        bounds = [goal[level] for level in ("must", "strong", "stretch")]
        rows.append(
            [goal["title"], measured, *("" if b is None else f"{b:g}{goal['unit']}" for b in bounds), goal["met"]]
        )
    return grid(["measure", "measured", "must", "strong", "stretch", "reached"], rows) if rows else ""


def render_peers(results: dict) -> str:
    """The losses beside pytorch-metric-learning's, one line each: forward and backward in t_gemm, and extra memory."""
    goals: dict[str, list[str]] = {}
    for goal in results["goals"]:
        if case := goal.get("beside_peer"):
            goals.setdefault(case, []).append(goal["met"])
    lines = []
    for row in results["rows"]:
        if row["name"] not in goals:
            continue
        taken = row["contenders"]
        product = taken["product"]["total"][1]
        line = [row["operation"], f"{row['rows']} × {row['width']}"]
        for name in ("fused", "peer"):
            total = taken.get(name, {}).get("total")
            line += ["" if total is None else _ratio(total[1] / product), _bytes(taken.get(name, {}).get("peak_bytes"))]
        met = goals[row["name"]]
        line.append("MISSED" if "MISSED" in met else "not measured" if "not measured" in met else "must")
        lines.append(line)
    peer = NAMES["peer"]
    header = [
        "forward + backward",
        "N × D",
        "dmlkernels / `t_gemm`",
        "extra memory",
        f"{peer} / `t_gemm`",
        "extra memory",
    ]
    return grid([*header, "reached"], lines) if lines else ""


def _lines(row: dict, count: int) -> list[str]:
    """What the row is about, over the lines of its contenders."""
    sizes = [row[name] for name in ("rows", "columns", "width") if row[name] is not None]
    numbers = f", {row['numbers']}" if row.get("numbers") else ""
    lines = [row["operation"] + numbers, " × ".join(map(str, sizes))]
    if classes := row.get("classes"):
        lines[1] += f", {classes} {'class' if classes == 1 else 'classes'}"
    if row["active_pairs"] is not None:
        pairs, tiles = _percent(row["active_pairs"]), _percent(row["active_tiles"])
        lines[1] += f", {KINDS[row['kind']]}"
        lines.append(f"active: {pairs} of pairs, {tiles} of tiles")
    return [*lines[: count - 1], "; ".join(lines[count - 1 :]), *[""] * (count - len(lines))]


def render_times(results: dict) -> str:
    """Every contender of every row: median and 20 % to 80 % quantiles."""
    rows = []
    for row in results["rows"]:
        contenders = row["contenders"]
        fused, product = contenders["fused"].get("total"), contenders.get("product", {}).get("total")
        for (name, taken), line in zip(contenders.items(), _lines(row, len(contenders))):
            cells = [line, NAMES[name], taken.get("skipped", ""), "", "", "", _bytes(taken.get("peak_bytes"))]
            total = taken.get("total")
            if total is not None:
                runs = "" if taken["samples"] >= results["samples"] else f", {taken['samples']} runs"
                cells[2] = _seconds(taken["forward"]) + runs
                cells[3] = "" if name == "product" else _seconds(total)
                cells[4] = "" if product is None else _ratio(total[1] / product[1])
                cells[5] = _ratio(total[1] / fused[1])
            rows.append(cells)
    header = [
        "operation, M × N × D or M × D",
        "by",
        "forward",
        "forward + backward",
        "/ `t_gemm`",
        "/ fused",
        "extra memory",
    ]
    return grid(header, rows)


def render_rates(results: dict) -> str:
    rates = results["one_thread_gflops"]
    if rates is None:
        return ""
    return (
        f"One thread, the product alone: {rates['tiles']} GFLOP/s by these kernels' tiles, {rates['mm']} by torch.mm."
    )


def render_summary(results: dict) -> str:
    return "\n\n".join(part for part in (render_goals(results), render_peers(results)) if part)


def render_all(results: dict) -> str:
    parts = [render_summary(results), render_times(results), render_rates(results)]
    return "\n\n".join(part for part in parts if part)


def measured() -> list[dict]:
    """The committed results of every CPU, by file name."""
    return [read_json(path) for path in sorted(RESULTS.glob("cpu-*.json"), key=lambda path: path.stem)]


def _of_each(results: Sequence[dict], render: Callable[[dict], str]) -> str:
    return "\n\n".join(f"{render_machine(result)}\n\n{render(result)}" for result in results)


def summaries(results: Sequence[dict]) -> str:
    """One screen, for the README."""
    return _of_each(results, render_summary)


def everything(results: Sequence[dict]) -> str:
    return _of_each(results, render_all)
