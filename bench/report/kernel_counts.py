"""What the machine code of the pair kernels takes on the way of a tile of the common kind.

A tile's own instructions, those of a step of its product, and those of the block, without a branch, that all its pairs
go through; of kernels that select, also what is done for a pair that may be better than what its row has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from bench.report import machine_code
from bench.report.machine_code import Kernel, Loop, count

TILE, WARPS, PAIRS = 128, 8, 64  # of a tile: rows, warps, pairs of a thread
SEGMENT = 8  # pairs of a row and a thread
SHARED = 128  # bytes of shared memory in a cycle
PRODUCTS = {"bf16": 4, "tf32": 3, "tf32x3": 1}  # their numbers in a kernel's name
FLOAT = ("FADD", "FMUL", "FFMA", "FSETP", "FSEL", "FMNMX", "MUFU", "F2FP")
Measure = Callable[[Counter[str]], float]


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
