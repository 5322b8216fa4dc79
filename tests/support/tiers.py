"""Which cases the default tier leaves to `make test-full`: it runs every value of a parameter, not every combination.

The cases that are kept of a test hold every value of each of its parameters, and on the native kernels pairs of values
up to eight cases. An emulated backend, whose cases take up to ten times as long, gets as many values as a few cases
can hold (Target.cases). Each backend starts elsewhere in the list, so that all of them see more combinations than one.
What is slow and no sweep, a test leaves to the full tier by hand: pytest.mark.full, or pytest.mark.heavy, which keeps
only the emulated backends out of the default tier. A loss is Python over operators: of tests/losses emulated backends
run only the comparison of every loss with its oracle there.
"""

from __future__ import annotations

import itertools
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest
from support.targets import Target

Case = Mapping[str, Hashable]  # parameter -> value
ORACLES = "tests/losses/test_every_loss.py"
PAIRS = 8  # cases of a native test up to which pairs of values are added to single ones


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
    groups, left = defaultdict(list), []
    for item in items:
        if not hasattr(item, "callspec") or any(item.get_closest_marker(name) for name in ("full", "slow")):
            continue
        target, case = case_of(item)
        if target is not None and target.emulated and only_in_full(item):
            left.append(item)
        else:
            groups[item.nodeid.split("[")[0], target].append((item, case))
    for (test, target), of_test in groups.items():
        cases = [case for _, case in of_test]
        start = zlib.crc32(f"{test} {target and target.name}".encode())
        at_most = None if target is None or not target.emulated else target.cases
        if at_most and ORACLES in test:
            cases, at_most = [{"loss": dict(item.callspec.params).get("name")} for item, _ in of_test], None
        kept = covering(cases, 1, start, at_most)
        if target is not None and target.name == "native":
            pairs = (k for k in covering(cases, 2, start) if k not in kept)
            kept += itertools.islice(pairs, max(0, PAIRS - len(kept)))
        left += [item for k, (item, _) in enumerate(of_test) if k not in kept]
    return left


def only_in_full(item: pytest.Item) -> bool:
    """Of an emulated backend."""
    of_losses = "tests/losses/" in item.nodeid and ORACLES not in item.nodeid
    return of_losses or item.get_closest_marker("heavy") is not None
