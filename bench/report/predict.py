"""Predicts the times of the pair kernels on an H100 from their machine code: nothing here was measured.

    python -m bench.report.predict build/wheel-cpython-311/libdmlkernels_cuda.so          the table, and what binds
    python -m bench.report.predict ... --write     keeps it in bench/results/predicted.json, of which
    python -m bench.report                         makes the table of docs/performance.md

From the instructions that are counted on the way of a tile of the common kind (kernel_counts.py), and from what the
tensor cores, the special functions, the shared memory and the memory have to do, each kernel gets the time of what
takes longest, as if all else were hidden behind it; `phases` adds up what binds the product and what binds the rest, as
if nothing overlapped.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import machine_code, resources
from bench.report.kernel_counts import PAIRS, PRODUCTS, SHARED, SPECS, TILE, WARPS, Counts, read, shared_bytes
from bench.report.machine_code import count
from bench.report.tables import RESULTS, grid, read_json, write_json

ARCHITECTURE = "90"

# The H100 of the predictions. Of each multiprocessor and cycle: instructions of a warp, lanes of special functions (and
# SHARED bytes); of the device: bytes a second of memory and of the second cache.
MULTIPROCESSORS, CLOCK = 132, 1.7e9
ISSUE, SPECIAL = 4, 16
MEMORY, CACHE = 3.0e12, 5.5e12
EFFICIENCIES = (0.6, 0.7, 0.8)  # of issue; the second is what goals are held against
TENSOR = {"bf16": 989e12, "tf32": 494e12}  # peak, of which mma.sync reaches:
MMA_SYNC = 0.62
REFERENCE = {"bf16": 700e12, "tf32": 350e12}  # what a plain product of matrices reaches
STRIPE = 24 << 20  # bytes of weights that a product takes at once
N = 16384
ELEMENT = {"bf16": 2, "tf32": 4, "tf32x3": 4}
DOUBLE = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")
# Instructions a pair, of both ends: a few more than were counted; 30 and 35 were asked for.
BUDGETS = {"statistics": 20, "statistics, log-sum-exp": 15, "weights": 20, "weights, log-sum-exp": 20}
STEP_BUDGET = 150  # instructions of a warp for 32 columns of 16 bits
GENERAL = 60  # instructions of a pair whose tile is not plain; assumed
STEP = 64  # bytes of a row in a step of a product


class Work(NamedTuple):
    """What a kernel does: instructions of warps outside and inside of its product, and what the other units have."""

    rest: float
    product: float
    rest_shared: float
    product_shared: float
    special: float  # lanes
    tensor: float  # seconds
    memory: float  # seconds

    def times(self, efficiency: float) -> dict[str, float]:
        of_issue = MULTIPROCESSORS * CLOCK * ISSUE * efficiency
        of_shared = MULTIPROCESSORS * CLOCK * SHARED
        return {
            "issue": (self.rest + self.product) / of_issue,
            "shared memory": (self.rest_shared + self.product_shared) / of_shared,
            "special functions": self.special / (MULTIPROCESSORS * CLOCK * SPECIAL),
            "tensor cores": self.tensor,
            "memory": self.memory,
        }

    def phases(self, efficiency: float) -> float:
        """If no block computed pairs while another multiplies."""
        of_issue = MULTIPROCESSORS * CLOCK * ISSUE * efficiency
        of_shared = MULTIPROCESSORS * CLOCK * SHARED
        product = max(self.product / of_issue, self.product_shared / of_shared, self.tensor)
        special = self.special / (MULTIPROCESSORS * CLOCK * SPECIAL)
        return max(product + max(self.rest / of_issue, self.rest_shared / of_shared, special), self.memory)


def work(
    counts: Counts, product: str, tiles: float, length: int, seconds_of_memory: float = 0, near: bool = False
) -> Work:
    """Of tiles whose products are over `length` terms; near: all in difference form, and by general code, too."""
    steps = length * ELEMENT[product] / STEP
    kind = "bf16" if product == "bf16" else "tf32"
    repeated = 3 if product == "tf32x3" else 1
    warps = tiles * WARPS
    flops = 2 * tiles * counts.strips * TILE * TILE * length * repeated
    tile = counts.tile
    # Copies before the first step are those that the last steps do not make.
    beside = Counter({opcode: number for opcode, number in tile.items() if not opcode.startswith("LDGSTS")})
    return Work(
        warps * (tile.total() + (counts.near_step * length + GENERAL * PAIRS if near else 0)),
        warps * steps * counts.step.total(),
        warps * shared_bytes(beside),
        warps * steps * shared_bytes(counts.step),
        warps * 32 * count(tile, "MUFU"),
        flops / (MMA_SYNC * TENSOR[kind]),
        seconds_of_memory,
    )


def reference(width: int, product: str, element: int) -> float:
    """t_gemm: the product of the rows with themselves, written in their type."""
    return max(2 * N * N * width / REFERENCE[product], (N * N + 2 * N * width) * element / MEMORY)


class Row(NamedTuple):
    name: str
    must: float
    strong: float
    works: list[Work]
    unit: float  # seconds

    def predicted(self, efficiency: float) -> float:
        return sum(max(work.times(efficiency).values()) for work in self.works) / self.unit

    def phases(self) -> float:
        return sum(work.phases(EFFICIENCIES[1]) for work in self.works) / self.unit

    def figures(self) -> dict[str, Any]:
        return {
            "row": self.name,
            "predicted": [round(self.predicted(efficiency), 2) for efficiency in EFFICIENCIES],
            "phases": round(self.phases(), 2),
            "must": self.must,
            "strong": self.strong,
            "binds": self.binding(),
        }

    def binding(self) -> str:
        times = [work.times(EFFICIENCIES[1]) for work in self.works]
        return ", ".join(dict.fromkeys(max(of, key=of.__getitem__) for of in times))


def rows(counts: dict[str, dict[str, Counts]]) -> Iterator[Row]:
    """`counts`: of each product, the kernels of SPECS."""
    side = N // TILE
    halves, full = side * (side + 1) // 2, side * side

    def forward(product: str, width: int, near: bool = False) -> Work:
        return work(counts[product]["statistics"], product, halves, width, near=near)

    def product_with_rows(product: str, width: int, share: float = 1) -> list[Work]:
        """The product, whose columns are shared by splits, and the kernel that reads these to add them up."""
        of = counts[product]["wide product" if width > TILE and "wide product" in counts[product] else "product"]
        blocks = side * -(-width // (TILE * of.strips))
        weights = N * N * ELEMENT[product] / CACHE * share * width / (TILE * of.strips)
        stripe = STRIPE // (N * ELEMENT[product]) // TILE * -(-width // TILE)
        splits = min(-(-2 * MULTIPROCESSORS // stripe), (side + 3) // 4)  # as column_splits has them
        sums = splits * N * width * 4 / CACHE
        multiplied = work(of, product, blocks * share, N)
        return [
            multiplied._replace(rest=work(of, product, blocks, 1).rest, memory=weights + sums),
            Work(0, 0, 0, 0, 0, 0, sums),
        ]

    def backward(product: str, width: int, share: float = 1, near: bool = False) -> list[Work]:
        weights = N * N * ELEMENT[product] / CACHE * share
        of_weights = work(counts[product]["weights"], product, full * share, width, weights, near)
        return [of_weights, *product_with_rows(product, width, share)]

    for width, must, strong in ((512, 1.15, 0.8), (128, 1.0, 0.75)):
        yield Row(
            f"ranked list, forward, bf16, D {width}",
            must,
            strong,
            [forward("bf16", width)],
            reference(width, "bf16", 2),
        )
    yield Row("ranked list, forward, TF32, D 512", 1.15, 0.75, [forward("tf32", 512)], reference(512, "tf32", 4))
    for width, strong in ((128, 3.5), (256, 3.5), (512, 3.6), (1024, 3.6)):
        both = [forward("bf16", width), *backward("bf16", width)]
        yield Row(f"ranked list, forward and backward, bf16, D {width}", 5, strong, both, reference(width, "bf16", 2))
    sparse = [forward("bf16", 128), *backward("bf16", 128, share=0.05)]
    yield Row("... one tile of twenty active, D 128", 2, 1.2, sparse, reference(128, "bf16", 2))
    dense = Row("", 0, 0, [forward("bf16", 128), *backward("bf16", 128)], 1).predicted(EFFICIENCIES[1])
    collapsed = [forward("bf16", 128, near=True), *backward("bf16", 128, near=True)]
    yield Row("... all pairs near, over dense data, D 128", 14, 10, collapsed, dense)
    exact = [forward("tf32x3", 512), *backward("tf32x3", 512)]
    floor = 3 * 2.5 * 2 * N * N * 512 / REFERENCE["tf32"]
    yield Row("... float32 as ieee, over its products, D 512", 2.5, 1.5, exact, floor)
    unit, of, matrix = reference(512, "bf16", 2), counts["bf16"], N * N * ELEMENT["bf16"]
    strips = range(1, side // -(-2 * MULTIPROCESSORS // side) + 1)
    chosen, looked = work(of["selection"], "bf16", full / 2, 512), of["selection"].looked
    assert looked is not None
    each = full * WARPS / len(strips)
    chosen = chosen._replace(
        rest=chosen.rest + each * sum(looked.instructions(strip, 1 / side) for strip in strips),
        rest_shared=chosen.rest_shared + each * sum(looked.shared(strip, 1 / side) for strip in strips),
    )
    yield Row("nearest positive, all rows of one class, bf16, D 512", 1.25, 1.0, [chosen], unit)
    values = work(of["similarities"], "bf16", full / 2, 512, matrix / MEMORY)
    yield Row("pairwise cosine, forward, bf16, D 512", 1.3, 1.15, [values], unit)
    # Both (i, j) and (j, i) are read, from memory through the cache, in which the weights stay.
    gradients = work(of["gradients"], "bf16", full, 0, max(2 * matrix / MEMORY, 3 * matrix / CACHE))
    yield Row(
        "pairwise cosine, forward and backward, bf16, D 512",
        3.6,
        3.3,
        [values, gradients, *product_with_rows("bf16", 512)],
        unit,
    )


def of_library(files: list[Path]) -> tuple[dict[str, dict[str, Counts]], dict[str, Any]]:
    code: dict[str, list[machine_code.Instruction]] = {}
    usage: dict[str, dict[str, int]] = {}
    for file in files:
        option = ("-arch", f"sm_{ARCHITECTURE}")
        code |= machine_code.read_instructions(resources._cuobjdump(file, *option, "-sass"))
        usage |= resources.read_usage(resources._cuobjdump(file, *option, "-res-usage"))
    names = resources.plain(code)
    rules = resources.read_rules(resources.TABLE.read_text(encoding="utf-8"))
    found: dict[str, dict[str, Counts]] = {}
    kernels: dict[str, Any] = {}
    for product, number in PRODUCTS.items():
        for kind, spec in SPECS.items():
            if product not in spec.products:
                continue
            pattern = re.compile(spec.pattern.format(number))
            mangled, name = next((m, n) for m, n in names.items() if pattern.match(n))
            counts = found.setdefault(product, {})[kind] = read(code[mangled], product, spec)
            rule = resources.rule_of(name, rules)
            registers = usage[mangled]["registers"]
            occupancy = resources.occupancy(ARCHITECTURE, registers, 32 * WARPS, rule.shared if rule else 0)
            tile = counts.tile
            kernels[name] = {
                "strips": counts.strips,
                "step": counts.step.total(),
                "pair": round(counts.pair(), 1),
                "tile": tile.total(),
                "special functions a tile": count(tile, "MUFU"),
                "shared bytes a tile": shared_bytes(tile),
                "barriers a tile": count(tile, "BAR"),
                "double precision a pair": count(counts.pairs, *DOUBLE),
                "registers": registers,
                "blocks a multiprocessor": round(occupancy * resources.MULTIPROCESSORS[ARCHITECTURE].warps / WARPS),
            }
    return found, kernels


def over_budget(kernels: dict[str, Any]) -> list[str]:
    """What of predicted.json is more than it may be."""
    found = []
    for kind, most in BUDGETS.items():
        pattern = re.compile(SPECS[kind].pattern.format(PRODUCTS["bf16"]))
        for name, kernel in kernels.items():
            if pattern.match(name) and kernel["pair"] > most:
                found.append(f"{name} takes {kernel['pair']} instructions a pair; {most} are allowed")
    for name, kernel in kernels.items():
        if f"(Product){PRODUCTS['bf16']}" in name and kernel["step"] > STEP_BUDGET * kernel["strips"]:
            found.append(f"{name} takes {kernel['step']} instructions a step; {STEP_BUDGET} are allowed a strip")
        if kernel["double precision a pair"]:
            found.append(f"{name} computes in double precision for each pair")
    return found


def misses(figures: Iterable[dict[str, Any]]) -> list[str]:
    """Rows that miss what they must."""
    return [
        f"{row['row']}: {row['predicted'][1]} t_gemm are predicted, {row['must']} are allowed"
        for row in figures
        if row["predicted"][1] > row["must"]
    ]


def measured() -> list[dict[str, Any]]:
    """What was kept: of machine code, not of a run."""
    return read_json(RESULTS / "predicted.json")["rows"]


def table(figures: Iterable[dict[str, Any]]) -> str:
    header = ["in t_gemm, N 16,384", "predicted", "at 0.8 to 0.6", "nothing overlaps", "must", "strong", "binds"]
    cells = []
    for row in figures:
        low, middle, high = row["predicted"]
        missed = " (missed)" if middle > row["must"] else ""
        times = [f"{middle:.2f}{missed}", f"{high:.2f} to {low:.2f}", f"{row['phases']:.2f}"]
        cells.append([row["row"], *times, f"{row['must']:g}", f"{row['strong']:g}", row["binds"]])
    return grid(header, cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", type=Path, help="libdmlkernels_cuda.so, or cubins")
    parser.add_argument("--write", action="store_true", help="keep the figures and the table")
    arguments = parser.parse_args()
    counts, kernels = of_library(arguments.libraries)
    figures = [row.figures() for row in rows(counts)]
    print(table(figures))
    if arguments.write:
        write_json(
            RESULTS / "predicted.json", {"architecture": f"sm_{ARCHITECTURE}", "rows": figures, "kernels": kernels}
        )
    problems = [*over_budget(kernels), *misses(figures)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
