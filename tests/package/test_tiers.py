"""The tiers: what the rule keeps of a sweep, and what keeps a folder of tests an inner loop of its own."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from support.tiers import covering, few

TESTS = Path(__file__).resolve().parents[1]
VALUES = {"dtype": ["float64", "float32", "bfloat16"], "kind": list("abcdef"), "n": [None, 9]}
SWEEP = [dict(zip(VALUES, case)) for case in itertools.product(*VALUES.values())]


@pytest.mark.parametrize("start", [0, 7, 35])
def test_every_value_is_kept_in_as_many_cases_as_it_takes(start: int) -> None:
    kept = [SWEEP[k] for k in covering(SWEEP, 1, start)]
    assert len(kept) == 6
    assert {name: {case[name] for case in kept} for name in VALUES} == {name: set(v) for name, v in VALUES.items()}


@pytest.mark.parametrize("start", [0, 7, 35])
def test_every_pair_of_values_is_kept(start: int) -> None:
    kept = [SWEEP[k] for k in covering(SWEEP, 2, start)]
    assert 18 <= len(kept) <= 24
    for one, other in itertools.combinations(VALUES, 2):
        assert {(case[one], case[other]) for case in kept} == set(itertools.product(VALUES[one], VALUES[other]))


def test_few_cases_hold_as_many_values_as_they_can() -> None:
    kept = [SWEEP[k] for k in covering(SWEEP, 1, 5, at_most=2)]
    assert len(kept) == 2
    assert all(kept[0][name] != kept[1][name] for name in VALUES)


def test_pairs_are_added_up_to_a_number_of_cases() -> None:
    values = covering(SWEEP, 1, 3)
    assert few(SWEEP, 3, 0) == few(SWEEP, 3, len(values)) == values
    more = few(SWEEP, 3, 9)
    assert more[: len(values)] == values
    assert len(set(more)) == 9
    assert set(few(SWEEP, 3, 1000)) == set(values) | set(covering(SWEEP, 2, 3))


def test_one_case_is_kept_whatever_it_is() -> None:
    assert covering([{}], 2) == covering([{"n": 1}], 2) == [0]


def test_no_test_file_imports_another() -> None:
    """What several share is in tests/support: a folder can be run, moved and read alone."""
    imported = re.compile(r"^\s*(?:from|import)\s+[\w., ]*\btest_", re.MULTILINE)
    files = sorted(TESTS.rglob("*.py"))
    assert len(files) > 50
    assert [file.name for file in files if imported.search(file.read_text(encoding="utf-8"))] == []
