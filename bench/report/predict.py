"""Predicts the times of the pair kernels on an H100 from their machine code: nothing here was measured.

    python -m bench.report.predict build/wheel-cpython-311/libdmlkernels_cuda.so          the table, and what binds
    python -m bench.report.predict ... --write     keeps it in bench/results/predicted.json, of which
    python -m bench.report                         makes the table of docs/performance.md

Instructions are counted on the way that a tile of the common kind takes (machine_code.py): its own, those of a step of
its product, and those of the block, without a branch, that all its pairs go through. From these and from what the
tensor cores, the special functions, the shared memory and the memory have to do, each kernel gets the time of what
takes longest, as if all else were hidden behind it; `phases` adds up what binds the product and what binds the rest, as
if nothing overlapped.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.report import machine_code, resources
from bench.report.machine_code import Kernel, Loop, count
from bench.report.tables import RESULTS, grid, read_json, write_json

ARCHITECTURE = "90"

# The H100 of the predictions. Of each multiprocessor and cycle: instructions of a warp, lanes of special functions and
# bytes of shared memory; of the device: bytes a second of memory and of the second cache.
MULTIPROCESSORS, CLOCK = 132, 1.7e9
ISSUE, SPECIAL, SHARED = 4, 16, 128
MEMORY, CACHE = 3.0e12, 5.5e12
EFFICIENCIES = (0.6, 0.7, 0.8)  # of issue; the second is what goals are held against
TENSOR = {"bf16": 989e12, "tf32": 494e12}  # peak, of which mma.sync reaches:
MMA_SYNC = 0.62
REFERENCE = {"bf16": 700e12, "tf32": 350e12}  # what a plain product of matrices reaches
STRIPE = 24 << 20  # bytes of weights that a product takes at once
TILE, WARPS, PAIRS = 128, 8, 64  # of a tile: rows, warps, pairs of a thread
WARP_PAIRS, SEGMENT = 32 * PAIRS, 8  # pairs of a warp; of a row and a thread
N = 16384
PRODUCTS = {"bf16": 4, "tf32": 3, "tf32x3": 1}  # their numbers in a kernel's name
ELEMENT = {"bf16": 2, "tf32": 4, "tf32x3": 4}
FLOAT = ("FADD", "FMUL", "FFMA", "FSETP", "FSEL", "FMNMX", "MUFU", "F2FP")
Measure = Callable[[Counter[str]], float]
DOUBLE = ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX")


class Spec(NamedTuple):
    """How a hot kernel is read."""

    pattern: str  # of its name, with the number of its product in place of {}
    products: tuple[str, ...] = tuple(PRODUCTS)
    strips: int = 1  # of 128 columns in a tile
    # Its pairs: opcodes of which the blocks without a branch that hold them have one for each, a block a strip; or how
    # often a loop without another inside is gone around; or, of a block with one tile, whatever is in no loop.
    pairs: tuple[str, ...] | int = 0


SPECS = {
    "statistics": Spec(r"pair_loss\.statistics_kernel<\(Product\){}, MomentTerm>", pairs=("MUFU.EX2", "MUFU.SQRT")),
    "statistics, log-sum-exp": Spec(r"pair_loss\.statistics_kernel<\(Product\){}, ExpTerm>", pairs=("MUFU.EX2",)),
    "weights": Spec(
        r"pair_loss_weights\.weights_kernel<\(Product\){}, PairWeights<MomentTerm", pairs=("MUFU.EX2", "MUFU.SQRT")
    ),
    "weights, log-sum-exp": Spec(
        r"pair_loss_weights\.weights_kernel<\(Product\){}, PairWeights<ExpTerm", pairs=("MUFU.EX2",)
    ),
    "product": Spec(r"pair_rows\.product_kernel<\(Product\){}, 1>"),
    "wide product": Spec(r"pair_rows\.product_kernel<\(Product\){}, 2>", ("bf16", "tf32"), 2),
    "selection": Spec(r"nearest_positive\.select_kernel<\(Product\){}, 2>", ("bf16",), 2, ("FSETP",)),
    "similarities": Spec(r"pairwise\.similarities_kernel<\(Product\){}, 2>", ("bf16",), 2),
    "gradients": Spec(r"pairwise\.weights_kernel<\(Product\){},", ("bf16",), 1, 8),
}
# Instructions a pair, of both ends: a few more than were counted; 30 and 35 were asked for.
BUDGETS = {"statistics": 20, "statistics, log-sum-exp": 15, "weights": 20, "weights, log-sum-exp": 20}
STEP_BUDGET = 150  # instructions of a warp for 32 columns of 16 bits
GENERAL = 60  # instructions of a pair whose tile is not plain; assumed
STEP = 64  # bytes of a row in a step of a product


class Looked(NamedTuple):
    """Instructions of a warp for what may be better than what its rows have."""

    kept: Counter[str]  # of a strip in which a thread has such pairs
    strip: Counter[str]  # of one in which any thread of the block has
    half: Counter[str]  # of 8 rows of a half of the tile, if one of them has
    segment: Counter[str]  # of eight pairs of each of these rows, in two rounds of its lanes

    def instructions(self, strip: int, meetings: float) -> float:
        """Of the strip of this number; `meetings`: the share of strips in which every row meets itself."""
        return self._sum(strip, meetings, Counter.total, Counter.total)

    def shared(self, strip: int, meetings: float) -> float:
        """Bytes; an access of a few lanes takes one turn."""
        return self._sum(strip, meetings, shared_bytes, shared_bytes if strip == 1 else turns_as_bytes)

    def _sum(self, strip: int, meetings: float, of_all: Measure, of_few: Measure) -> float:
        """What is measured of each part, where all lanes take part or few do, times the chance of it.

        Columns are in no particular order: of a row, one in the t-th strip is better than all before it at odds of 1 to
        t, and k or more are at t to the power of -k. A quarter of the columns are a warp's own.
        """
        better = 1 / strip
        own = (1 - better) / (1 - 0.75 * better)
        return (
            (1 - own**64 + meetings) * of_few(self.kept)
            + (1 - (1 - better) ** TILE) * of_all(self.strip)
            + 2 * (1 - (1 - better) ** 8 + meetings) * of_all(self.half)
            + 2 * (rounds(strip) + meetings) * of_few(self.segment)
        )


def rounds(strip: int, rows: int = 8, most: int = TILE // SEGMENT) -> float:
    """Segments of the row of most, of rows side by side, in the strip of this number."""
    return sum(1 - (1 - strip**-k) ** rows for k in range(1, most + 1))


class Counts(NamedTuple):
    """Instructions of a warp in a kernel, on the way of a plain tile."""

    strips: int  # of 128 columns in a tile
    step: Counter[str]  # a step of the product
    near_step: int  # one feature of the difference form
    own: Counter[str]  # a tile, beside its product and what follows
    pairs: Counter[str]  # what is done with the values of all pairs of a tile, without a branch
    looked: Looked | None  # of a kernel that selects, besides

    @property
    def tile(self) -> Counter[str]:
        return self.own + self.pairs

    def pair(self) -> float:
        """Of a pair: its value, and what is done with it."""
        return (self.pairs.total() + count(self.own, *FLOAT)) / (PAIRS * self.strips)


def read(code: list[machine_code.Instruction], product: str, spec: Spec) -> Counts:
    kernel = Kernel(code)
    stage, step = _product(kernel, product)
    if spec.pairs == 0:
        outside = set(range(len(kernel.code))).difference(*(loop.blocks for loop in kernel.loops))
        return Counts(spec.strips, step, 0, kernel.instructions(outside), Counter(), None)
    around = next(loop for loop in kernel.loops if loop.blocks > stage.blocks)
    if isinstance(spec.pairs, int):  # rows of gradients, which no product comes before
        times = spec.pairs
        inner = machine_code.innermost(kernel, lambda o: min(count(o, "LDG"), count(o, "STS")) >= PAIRS // times)
        rows = max(inner, key=lambda loop: kernel.instructions(loop.blocks).total())
        own, row = kernel.round(around, [rows]), kernel.round(rows, longest=True)
        assert own is not None, spec.pattern
        assert row is not None, spec.pattern
        return Counts(spec.strips, step, 0, own, Counter({opcode: times * n for opcode, n in row.items()}), None)
    blocks: list[Loop] = []
    for wanted in spec.pairs:
        found = machine_code.straight(kernel, around, lambda opcodes: _of(opcodes, wanted) >= PAIRS)  # noqa: B023
        blocks += [block for block in found[: spec.strips] if block not in blocks]
    own = kernel.round(around, [stage, *blocks])
    assert own is not None, spec.pattern
    pairs = kernel.instructions(block.header for block in blocks)
    near = machine_code.innermost(kernel, lambda o: count(o, "FADD") >= PAIRS and count(o, "FFMA") >= PAIRS)
    near_step = min((kernel.instructions(loop.blocks).total() for loop in near), default=0)
    looked = None
    if spec.strips > 1:
        looked = _looked(kernel, around, stage)
        for _ in range(spec.strips - 1):  # the loop around the strips, passed once so far
            own = own + (kernel.round(_strips(kernel, around, stage)) or Counter())
    return Counts(spec.strips, step, near_step, own, pairs, looked)


def _looked(kernel: Kernel, around: Loop, stage: Loop) -> Looked:
    """Of a kernel that selects, whose strips are a loop, with one of segments for each half of the tile's rows."""
    strips = _strips(kernel, around, stage)
    segments = _outermost(kernel.inside(strips))
    kept = machine_code.straight(kernel, strips, lambda opcodes: _of(opcodes, "STS") >= PAIRS // 4)[0]
    closing = machine_code.straight(kernel, strips, lambda opcodes: _of(opcodes, "BAR.SYNC") > 0)[-1]
    ways = kernel.round(strips), kernel.round(strips, [closing]), kernel.round(strips, [*segments, closing])
    idle, visited, whole = (Counter() if way is None else way for way in ways)
    half = Counter({opcode: number // 2 for opcode, number in (whole - visited).items()})
    segment = max((_segment(kernel, loop) for loop in segments), key=Counter.total)
    return Looked(kernel.instructions([kept.header]), visited - idle, half, segment)


def _strips(kernel: Kernel, around: Loop, stage: Loop) -> Loop:
    return next(loop for loop in kernel.inside(around) if not loop.blocks & stage.blocks)


def _segment(kernel: Kernel, loop: Loop) -> Counter[str]:
    (pair,) = _outermost(kernel.inside(loop))
    around, of_pair = kernel.round(loop, [pair]), kernel.round(pair, longest=True)
    assert around is not None
    assert of_pair is not None
    return around + Counter({opcode: SEGMENT // 4 * number for opcode, number in of_pair.items()})


def _outermost(loops: list[Loop]) -> list[Loop]:
    return [loop for loop in loops if not any(loop.blocks < other.blocks for other in loops)]


def _of(opcodes: Counter[str], wanted: str) -> int:
    return sum(number for opcode, number in opcodes.items() if f"{opcode}.".startswith(f"{wanted}."))


def _product(kernel: Kernel, product: str) -> tuple[Loop, Counter[str]]:
    """The loop over the stages of a product, and the instructions of one of them."""
    holding = [loop for loop in kernel.loops if count(kernel.instructions(loop.blocks), "HMMA")]
    if product != "tf32x3":
        stage, inner = holding[-1], None
    else:  # which takes a stage in two
        stage, inner = holding[-2], holding[-1]
    step = kernel.round(stage, [inner] if inner else [], longest=True)
    assert step is not None
    if inner is not None:
        half = kernel.round(inner)
        assert half is not None
        step = step + half + half
    return stage, step


def shared_bytes(opcodes: Counter[str]) -> int:
    """What the instructions of a warp move through shared memory; a shuffle takes its lanes once."""
    total = 0
    for opcode, number in _of_shared(opcodes):
        suffixes = opcode.split(".")
        lane = 16 if {"128", "M88"} & set(suffixes) else 8 if "64" in suffixes else 4
        total += number * 32 * lane
    return total


def turns_as_bytes(opcodes: Counter[str]) -> int:
    """The bytes that could have been moved meanwhile, if few lanes take part in each."""
    return SHARED * sum(number for _, number in _of_shared(opcodes))


def _of_shared(opcodes: Counter[str]) -> list[tuple[str, int]]:
    names = ("LDS", "STS", "LDGSTS", "LDSM", "SHFL")
    return [(opcode, number) for opcode, number in opcodes.items() if opcode.partition(".")[0] in names]


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
