"""Loops of a compiled kernel, and the instructions of a way through them, from `cuobjdump -sass`."""

from __future__ import annotations

import functools
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?\w+)\s+)?([A-Z][\w.]*)\s*(.*?);")
ENDS = {"BRA", "BRX", "JMP", "EXIT", "RET", "KILL"}


class Instruction(NamedTuple):
    address: int
    opcode: str  # with its suffixes
    conditional: bool
    target: int | None  # of a branch

    @property
    def name(self) -> str:
        return _name(self.opcode)


def _name(opcode: str) -> str:
    # BRA.DIV is no branch: it goes to a copy of the shuffles for warps that have diverged, and ours never have.
    return opcode if opcode.startswith("BRA.DIV") else opcode.partition(".")[0]


def read_instructions(lines: Iterable[str]) -> dict[str, list[Instruction]]:
    """Mangled name -> the instructions of a kernel."""
    kernels: dict[str, list[Instruction]] = {}
    code: list[Instruction] = []
    for line in lines:
        if "Function :" in line:
            code = kernels[line.split()[-1]] = []
        elif found := LINE.match(line):
            address, guard, opcode, operands = found.groups()
            branch = _name(opcode) in ENDS
            target = re.search(r"0x([0-9a-f]+)\s*$", operands) if branch else None
            conditional = guard is not None or (branch and re.match(r"!?U?P\d", operands) is not None)
            code.append(Instruction(int(address, 16), opcode, conditional, int(target[1], 16) if target else None))
    return kernels


class Loop(NamedTuple):
    header: int
    blocks: frozenset[int]


class Kernel:
    """Basic blocks, by number, and the natural loops of their graph."""

    def __init__(self, code: list[Instruction]) -> None:
        places = {instruction.address: at for at, instruction in enumerate(code)}
        starts = {0}
        for at, instruction in enumerate(code):
            if instruction.target in places:
                starts.add(places[instruction.target])
            if instruction.name in ENDS:
                starts.add(at + 1)
        begins = sorted(at for at in starts if at < len(code))
        ends = [*begins[1:], len(code)]
        self.code = [code[begin:end] for begin, end in zip(begins, ends)]
        self.after: list[set[int]] = []
        for number, block in enumerate(self.code):
            last = block[-1]
            following = set()
            if last.target in places:
                following.add(bisect_right(begins, places[last.target]) - 1)
            if (last.name not in ENDS or last.conditional) and number + 1 < len(begins):
                following.add(number + 1)
            self.after.append(following)
        self.loops = self._loops()

    def _loops(self) -> list[Loop]:
        """The widest first."""
        before: list[set[int]] = [set() for _ in self.code]
        for number, following in enumerate(self.after):
            for other in following:
                before[other].add(number)
        everything = (1 << len(self.code)) - 1
        dominators = [1, *[everything] * (len(self.code) - 1)]  # as bits
        changed = True
        while changed:
            changed = False
            for number in range(1, len(self.code)):
                shared = functools.reduce(int.__and__, (dominators[k] for k in before[number]), everything)
                if (found := shared | 1 << number) != dominators[number]:
                    dominators[number], changed = found, True
        bodies: dict[int, set[int]] = defaultdict(set)
        for number, following in enumerate(self.after):
            for header in following:
                if not dominators[number] >> header & 1 or (number and dominators[number] == everything):
                    continue
                body, waiting = {header}, [number]
                while waiting:
                    if (block := waiting.pop()) not in body:
                        body.add(block)
                        waiting += before[block]
                bodies[header] |= body
        return sorted((Loop(h, frozenset(b)) for h, b in bodies.items()), key=lambda loop: -len(loop.blocks))

    def inside(self, loop: Loop) -> list[Loop]:
        return [other for other in self.loops if other.blocks < loop.blocks]

    def instructions(self, blocks: Iterable[int]) -> Counter[str]:
        """How often each opcode occurs."""
        return Counter(instruction.opcode for block in blocks for instruction in self.code[block])

    def round(self, loop: Loop, through: Iterable[Loop] = (), longest: bool = False) -> Counter[str] | None:
        """Opcodes of the shortest (or longest) way once around a loop, past each of the loops (or blocks) `through`.

        What these themselves cost is left out. A loop that has one of them inside is not gone around again; another is
        passed only where no way leads around it, and counts once.
        """
        wanted = list(through)
        once = [other for other in self.inside(loop) if any(inner.blocks < other.blocks for inner in wanted)]
        closed = [
            other for other in self.inside(loop) if other not in once and not _within(other, self.inside(loop), once)
        ]
        closed += [block for block in wanted if block not in self.loops]
        of_block = {block: other for other in closed for block in other.blocks}
        every = (1 << len(wanted)) - 1
        best = max if longest else min

        @functools.cache
        def way(node: int, seen: int) -> tuple[int, int, tuple[int, ...]] | None:
            detour = 0
            if (inner := of_block.get(node)) is not None:
                following = set().union(*(self.after[block] for block in inner.blocks)) - inner.blocks
                own: tuple[int, ...] = ()
                if inner in wanted:
                    seen |= 1 << wanted.index(inner)
                else:
                    own, detour = tuple(inner.blocks), 1
            else:
                following, own = self.after[node], (node,)
            found: list[tuple[int, int, tuple[int, ...]]] = []
            if loop.header in following and seen == every:
                found.append((0, 0, ()))
            for other in sorted(following):
                if other not in loop.blocks or other == loop.header or _goes_back(other, node, once):
                    continue
                if (rest := way(other, seen)) is not None:
                    found.append(rest)
            if not found:
                return None
            fewest = min(detours for detours, _, _ in found)
            detours, cost, blocks = best(way for way in found if way[0] == fewest)
            return detours + detour, cost + sum(len(self.code[block]) for block in own), own + blocks

        found = way(loop.header, 0)
        return None if found is None else self.instructions(found[2])


def _goes_back(other: int, node: int, once: list[Loop]) -> bool:
    return any(other == loop.header and node in loop.blocks for loop in once)


def _within(loop: Loop, loops: list[Loop], once: list[Loop]) -> bool:
    """Whether a loop lies in another that is closed."""
    return any(loop.blocks < other.blocks for other in loops if other not in once)


def innermost(kernel: Kernel, holds: Callable[[Counter[str]], bool]) -> list[Loop]:
    """Loops without one inside, of the opcodes that are asked for."""
    return [loop for loop in kernel.loops if not kernel.inside(loop) and holds(kernel.instructions(loop.blocks))]


def straight(kernel: Kernel, loop: Loop, holds: Callable[[Counter[str]], bool]) -> list[Loop]:
    """Blocks without a branch inside a loop, of opcodes that are asked for, as `round` takes them; longest first."""
    blocks = [block for block in loop.blocks if holds(kernel.instructions([block]))]
    blocks.sort(key=lambda block: -len(kernel.code[block]))
    return [Loop(block, frozenset([block])) for block in blocks]


def count(opcodes: Counter[str], *names: str) -> int:
    """Instructions whose opcode, up to its first point, is one of these."""
    return sum(number for opcode, number in opcodes.items() if opcode.partition(".")[0] in names)
