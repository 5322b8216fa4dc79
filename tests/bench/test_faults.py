"""The table of faults fits the sources: each stands for one place, and what is compiled is still code."""

from __future__ import annotations

import pytest

from scripts.faults import FAULTS
from scripts.mutants import ROOT, planted


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_fault_fits(number):
    fault = FAULTS[number]
    text = (ROOT / fault.file).read_text(encoding="utf-8")
    assert planted(text, number, fault) != text
    for code in (fault.right, fault.wrong) if fault.compiled else ():
        assert all(code.count(a) == code.count(b) for a, b in ("()", "[]", "{}"))
        assert code.count(" ? ") == code.count(" : ")
        if code.startswith("if ("):
            assert code.endswith(";")
