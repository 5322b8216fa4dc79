"""What docs/gpu-status.md says comes from the results of `make gpu`, and what never ran says so."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_pair_loss" name="test_every_dtype[native-cuda-float32-random-self]"/>
<testcase classname="tests.ops.test_pair_loss_edges" name="test_empty[triton-cuda]"><failure message="no"/></testcase>
<testcase classname="tests.ops.test_pair_loss_edges" name="test_empty[native-cuda]"/>
<testcase classname="tests.ops.test_pairwise" name="test_dtype[native-cuda]"><skipped message="no"/></testcase>
<testcase classname="tests.ops.test_large" name="test_self_mode[triton-cuda]"/>
<testcase classname="tests.ops.test_pairwise" name="test_message"/>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def status() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_status", ROOT / "scripts" / "gpu_status.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tested(status, tmp_path, monkeypatch) -> dict:
    monkeypatch.setattr(status, "device", lambda: "NVIDIA X100 80GB")
    monkeypatch.setattr(status, "commit", lambda: "abc")
    (tmp_path / "report.xml").write_text(REPORT, encoding="utf-8")
    path = status.record("test", [tmp_path / "report.xml"], tmp_path / "results")
    assert path.name == "gpu-nvidia-x100-80gb.json"
    return json.loads(path.read_text(encoding="utf-8"))


def line(text: str, start: str) -> list[str]:
    """The cells of the first row of a table that starts so."""
    return [cell.strip() for cell in re.search(rf"^\| {start} .*$", text, re.MULTILINE)[0].strip("|").split("|")]


def test_the_document_is_what_the_results_give(status):
    assert status.DOCUMENT.read_text(encoding="utf-8") == status.render(status.read_all(status.RESULTS))


def test_without_results_nothing_ran(status):
    text = status.render([])
    assert "has ever run on a GPU" in text
    assert line(text, "pair_loss")[1] == "never run on a GPU"
    assert "passed" not in text


def test_tests_are_counted_by_operation_and_backend(tested):
    assert tested["test"]["topics"] == {
        "pair_loss": {
            "native": {"passed": 2, "failed": 0, "skipped": 0},
            "triton": {"passed": 0, "failed": 1, "skipped": 0},
        },
        "pairwise": {"native": {"passed": 0, "failed": 0, "skipped": 1}},
        "large": {"triton": {"passed": 1, "failed": 0, "skipped": 0}},
    }


def test_what_ran_and_what_did_not(status, tested):
    text = status.render([tested])
    assert "has ever run on a GPU" not in text
    assert line(text, "pair_loss")[1:] == [
        "2 passed on NVIDIA X100 80GB",
        "**1 failed**, 0 passed on NVIDIA X100 80GB",
    ]
    assert line(text, "pairwise")[1] == "never run on NVIDIA X100 80GB"
    assert line(text, "coding_rate")[1] == "never run on a GPU"
    assert "compute-sanitizer has never run on it" in text
    assert "Nothing has been measured on it" in text


def test_a_stage_keeps_the_others(status, tested, tmp_path):
    (tmp_path / "sanitize.json").write_text('{"tools": {"memcheck": "clean"}}', encoding="utf-8")
    path = status.record("sanitize", [tmp_path / "sanitize.json"], tmp_path / "results")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["test"] == tested["test"]
    text = status.render([kept])
    assert line(text, "memcheck") == ["memcheck", "clean"]
    assert line(text, "racecheck") == ["racecheck", "never run"]
