"""Which cases of a test belong to which tier.

`make test` runs every value of a parameter, not every combination: the cases that it keeps hold every value of each
parameter, and on the native kernels pairs of values too (Target.pairs). `make test-full` runs all of them. A case of an
emulated backend takes up to ten times as long: `make test` gives it as many values as a few cases can hold
(Target.cases), `make test-full` every value and pairs up to Target.pairs cases, and `make trust` runs the rest.

Each backend starts elsewhere in the list, so that all of them see more combinations than one. What is slow and no
sweep, a test leaves to the full tier by hand: pytest.mark.full, or pytest.mark.heavy, which keeps only the emulated
backends out of the default tier. A loss is Python over operators: of tests/losses emulated backends run only the
comparison of every loss with its oracle by default, and what is heavy only in `make trust`.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from support.targets import Target

Case = Mapping[str, Hashable]  # parameter -> value
ORACLES = "tests/losses/test_every_loss.py"


def covering(cases: Sequence[Case], together: int, start: int = 0, at_most: int | None = None) -> list[int]:
    """Numbers of few cases that hold each combination of values of `together` parameters: greedily, from start."""
    order = [(start + k) % len(cases) for k in range(len(cases))]
    combinations = {
        k: set(itertools.combinations(sorted(cases[k].items(), key=lambda item: item[0]), min(together, len(cases[k]))))
        for k in order
    }
    missing: set = set().union(*combinations.values())
    kept: list[int] = []
    while missing and (at_most is None or len(kept) < at_most):
        kept.append(max(order, key=lambda k: len(combinations[k] & missing)))
        missing -= combinations[kept[-1]]
    return kept or order[:1]


def key_of(value: object) -> Hashable:
    """The value, or what stands for one that has no hash or holds such a one."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def case_of(item: pytest.Function) -> tuple[Target | None, Case]:
    """The backend of a test's case, and its other parameters; arguments that are given together are one."""
    parameters = dict(item.callspec.params)
    targets: list[Any] = [
        parameters.pop(name) for name in ("kernel", "backend") if isinstance(parameters.get(name), Target)
    ]
    values: dict[str, Hashable] = {name: key_of(value) for name, value in parameters.items()}
    for mark in item.iter_markers("parametrize"):
        given = mark.args[0]
        names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
        if values.keys() >= set(names):
            values[",".join(names)] = tuple(values.pop(name) for name in names)
    return (targets[0] if targets else None), values


def few(cases: Sequence[Case], start: int, pairs: int) -> list[int]:
    """Cases that hold every value, and pairs of values up to so many cases."""
    kept = covering(cases, 1, start)
    more = (k for k in covering(cases, 2, start) if k not in kept)
    return kept + list(itertools.islice(more, max(0, pairs - len(kept))))


def marks(items: Iterable[pytest.Item]) -> Iterator[tuple[pytest.Item, str]]:
    """The items that `make test` leaves out, and their tier: full or slow."""
    groups = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("slow"):
            target, case = case_of(item)
            tier = first_tier(item, target)
            if tier == "slow":
                yield item, tier
            else:
                groups[item.nodeid.split("[")[0], target, tier].append((item, case))
    for (test, target, tier), of_test in groups.items():
        cases = [case for _, case in of_test]
        start = zlib.crc32(f"{test} {target and target.name}".encode())
        emulated, pairs = target is not None and target.emulated, 0 if target is None else target.pairs
        default = full = range(len(cases))
        if emulated:
            full = few(cases, start, pairs)
        if tier == "full":
            default = []
        elif emulated and ORACLES in test:
            default = covering([{"loss": dict(item.callspec.params).get("name")} for item, _ in of_test], 1, start)
        elif emulated:
            default = covering(cases, 1, start, target.cases)
        else:
            default = few(cases, start, pairs)
        for k, (item, _) in enumerate(of_test):
            if k not in default:
                yield item, "full" if k in full else "slow"


def first_tier(item: pytest.Item, target: Target | None) -> str:
    """The tier that can have a case at the earliest."""
    by_hand = "full" if item.get_closest_marker("full") else "default"
    if target is None or not target.emulated:
        return by_hand
    heavy, of_losses = item.get_closest_marker("heavy") is not None, "tests/losses/" in item.nodeid
    if heavy and of_losses:
        return "slow"
    return "full" if heavy or (of_losses and ORACLES not in item.nodeid) else by_hand
