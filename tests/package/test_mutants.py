"""The table of planted faults fits the sources, and the sources hold no fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.report.faults import table
from scripts.faults import BACKENDS, FAULTS
from scripts.mutants import planted

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number, fault", list(enumerate(FAULTS, 1)), ids=lambda value: getattr(value, "file", value))
def test_what_is_right_stands_once_in_its_file(number, fault):
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    changed = planted(text, number, fault)
    assert changed != text
    assert "dml_fault" not in text
    assert changed.count(f"dml_fault({number})") == fault.compiled


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.compiled], ids=lambda fault: fault.file)
def test_what_is_compiled_is_code_either_way(fault):
    for code in (fault.right, fault.wrong):
        assert all(code.count(a) == code.count(b) for a, b in ("()", "[]", "{}"))
        assert code.count(" ? ") == code.count(" : ")
        assert not code.startswith("if (") or code.endswith(";")


@pytest.mark.parametrize("pattern", sorted({pattern for fault in FAULTS for pattern in fault.tests.split()}))
def test_its_tests_are_there(pattern):
    assert list((ROOT / "tests").glob(f"{pattern}.py"))


def test_every_layer_has_faults():
    layers = Counter(fault.layer for fault in FAULTS)
    assert layers.keys() == BACKENDS.keys()
    assert sum(layers.values()) >= 60
    assert len(set(FAULTS)) == len(FAULTS)


def test_a_fault_of_two_places_is_refused():
    fault = FAULTS[0]
    with pytest.raises(ValueError, match=r"must hold .* once, got 2"):
        planted(fault.right * 2, 1, fault)


def test_the_table_counts_what_each_tier_catches():
    rows = [{"layer": "cpu", "outcome": "caught", "tier": tier} for tier in ("default", "default", "full")]
    rows += [{"layer": "cuda", "outcome": "missed", "tier": "full"}]
    _, _, *lines = table(rows).splitlines()
    assert [line.replace("|", " ").split() for line in lines] == [
        ["cpu", "3", "2", "1", "0"],
        ["cuda", "1", "0", "0", "1"],
    ]
