"""Which cases the default tier leaves to `make test-full`: it runs every value of a parameter, not every combination.

The cases that are kept of a test hold every value of each of its parameters, and on the native kernels every pair of
values. An emulated backend, whose cases take up to ten times as long, gets as many values as a few cases can hold
(Target.cases). Each backend starts elsewhere in the list, so that all of them see more combinations than one. What is
slow and no sweep, a test leaves to the full tier by hand: pytest.mark.full, or pytest.mark.heavy, which keeps only the
emulated backends out of the default tier. A loss is Python over operators: of tests/losses emulated backends run only
the comparison of every loss with its oracle there.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest
from support.targets import Target

Case = Mapping[str, Hashable]  # parameter -> value


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
    targets = [parameters.pop(name) for name in ("kernel", "backend") if isinstance(parameters.get(name), Target)]
    values = {name: key_of(value) for name, value in parameters.items()}
    for mark in item.iter_markers("parametrize"):
        given = mark.args[0]
        names = [name.strip() for name in (given.split(",") if isinstance(given, str) else given)]
        if values.keys() >= set(names):
            values[",".join(names)] = tuple(values.pop(name) for name in names)
    return (targets[0] if targets else None), values


def left_to_the_full_tier(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    groups = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            target, case = case_of(item)
            groups[item.nodeid.split("[")[0], target].append((item, case))
    left = []
    for (test, target), of_test in groups.items():
        emulated = target is not None and target.emulated
        oracles = "/test_every_loss.py" in test
        heavy = of_test[0][0].get_closest_marker("heavy") is not None
        if emulated and (heavy or ("tests/losses/" in test and not oracles)):
            left += [item for item, _ in of_test]
            continue
        together = 2 if target is not None and target.name == "native" else 1
        start = zlib.crc32(f"{test} {target and target.name}".encode())
        at_most = None if oracles or target is None else target.cases
        kept = set(covering([case for _, case in of_test], together, start, at_most))
        left += [item for k, (item, _) in enumerate(of_test) if k not in kept]
    return left
