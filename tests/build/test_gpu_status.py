"""What docs/gpu-status.md says comes from results of `make gpu` and of compilers, and what never ran says so."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from bench.report.tables import RESULTS, read_json, write_json
from scripts import gpu_status as status

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.ops.test_pair_loss" name="test_every_dtype[native-cuda-float32-random-self]"/>
<testcase classname="tests.ops.test_pair_loss_edges" name="test_empty[triton-cuda]"><failure message="no"/></testcase>
<testcase classname="tests.ops.test_pair_loss_edges" name="test_empty[native-cuda]"/>
<testcase classname="tests.ops.test_pairwise" name="test_dtype[native-cuda]"><skipped message="no"/></testcase>
<testcase classname="tests.ops.test_large" name="test_self_mode[triton-cuda]"/>
<testcase classname="tests.ops.test_pairwise" name="test_message"/>
</testsuite></testsuites>"""
KERNELS = {"cuda": {"pair_rows.finish": ["80", "90"], "pairwise.finish": ["90"]}, "triton": {"_rows._prepare": ["90"]}}

ENTRIES = {"float": "pair_rows.finish", "int": "pairwise.finish"}


def ended(**codes: int | None) -> dict[str, dict]:
    return {name.replace("_", " "): {"code": code} for name, code in codes.items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """The results of a run."""
    run = tmp_path / "run"
    machine = {"device": "NVIDIA X100 80GB", "torch": "2.11.0", "cuda": "13.0", "python": "3.12.3", "when": "today"}
    steps = {
        "check": ended(pairwise=0, contrastive=1),
        "test": ended(test_pairwise=0, test_nothing=5, test_slow=None),
        "sanitize": ended(memcheck_part_1=0, memcheck_part_2=None, racecheck_part_1=0, racecheck_part_2=9),
        "triton-sanitize": ended(memcheck_part_1=127),
    }
    signatures = {
        "void dml::finish<float>(float*)": "pair_rows.finish",
        "void dml::finish<int>(int*)": "pairwise.finish",
    }
    write_json(run / "built.json", {"commit": "abc", "signatures": signatures})
    write_json(run / "check" / "machine.json", machine)
    write_json(run / "steps.json", steps)
    write_json(run / "smoke" / "kernels.json", ["void dml::finish<float>(float*)", "Memset", "_prepare"])
    (run / "test").mkdir()
    (run / "test" / "test_all.xml").write_text(REPORT, encoding="utf-8")
    return run


@pytest.fixture
def results(tmp_path) -> Path:
    """bench/results of that machine."""
    write_json(tmp_path / "results" / "kernels.json", KERNELS)
    return tmp_path / "results"


@pytest.fixture
def kept(folder, results) -> dict:
    path = status.keep_run(folder, results)
    assert path == results / "gpu-nvidia-x100-80gb.json"
    return read_json(path)


def line(text: str, start: str) -> list[str]:
    """The cells of the first row of a table that starts so."""
    found = re.search(rf"^\| {re.escape(start)} .*$", text, re.MULTILINE)
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def test_the_document_is_what_the_results_give():
    assert status.DOCUMENT.read_text(encoding="utf-8") == status.render(status.read_all(RESULTS))


def test_the_kernels_are_those_of_the_sources():
    """Made anew by `python -m scripts.gpu_status compiled` of the wheel's library and of Triton's figures."""
    listed = read_json(RESULTS / "kernels.json")
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    assert {name.partition(".")[2] for name in listed["cuda"]} == set(
        re.findall(r"DML_KERNEL\([^)]*\)\s*(\w+)\(", text)
    )
    for module, name in (kernel.split(".") for kernel in listed["triton"]):
        source = (ROOT / "triton_kernels" / f"{module}.py").read_text(encoding="utf-8")
        assert re.search(rf"^@triton\.jit.*\ndef {name}\(", source, re.MULTILINE)


def test_without_results_nothing_ran(results):
    text = status.render([], results)
    assert "has ever run on a GPU" in text
    assert line(text, "pair_loss")[1] == "never run on a GPU"
    assert line(text, "`pair_rows.finish`") == ["`pair_rows.finish`", "sm_80, sm_90", "never"]
    assert "passed" not in text


def test_tests_are_counted_by_operation_and_backend(kept):
    assert kept["topics"] == {
        "pair_loss": {
            "native": {"passed": 2, "failed": 0, "skipped": 0},
            "triton": {"passed": 0, "failed": 1, "skipped": 0},
        },
        "pairwise": {"native": {"passed": 0, "failed": 0, "skipped": 1}},
        "large": {"triton": {"passed": 1, "failed": 0, "skipped": 0}},
    }


def test_what_ran_and_what_did_not(kept, results):
    text = status.render([kept], results)
    assert "has ever run on a GPU" not in text
    assert line(text, "pair_loss")[1:] == [
        "2 passed on NVIDIA X100 80GB",
        "**1 failed**, 0 passed on NVIDIA X100 80GB",
    ]
    assert line(text, "pairwise")[1] == "never run on NVIDIA X100 80GB"
    assert line(text, "coding_rate")[1] == "never run on a GPU"
    assert line(text, "check") == ["check", "1", "1", "0"]
    assert line(text, "test") == ["test", "2", "0", "1"]


def test_sanitizers(kept):
    assert kept["sanitized"] == {
        "native": {"memcheck": "clean in 1 of 2 parts, others cut off", "racecheck": "**errors**"},
        "triton": {"memcheck": "**did not run (exit status 127)**"},
    }


def test_kernels_that_ran_are_told_apart_by_their_signature(kept, results):
    assert kept["kernels"] == {"cuda": ["pair_rows.finish"], "triton": ["_rows._prepare"]}
    text = status.render([kept], results)
    assert line(text, "`pair_rows.finish`")[-1] == "NVIDIA X100 80GB"
    assert line(text, "`pairwise.finish`")[-1] == "never"
    assert line(text, "`_rows._prepare`")[-1] == "NVIDIA X100 80GB"


def test_a_name_of_two_triton_kernels_says_nothing():
    known = {"cuda": [], "triton": ["a._forward", "b._forward", "b._merge"]}
    assert status.named(["_forward", "_merge"], {}, known)["triton"] == ["b._merge"]


def test_other_ways_have_a_column_where_their_file_is(results):
    assert line(status.render([], results), "kernel") == ["kernel", "compiled for", "run on a GPU"]
    executed = {"host": {"cuda": ["pairwise.finish"]}, "ptx": {"triton": ["_rows._prepare"]}}
    write_json(results / "executed.json", executed)
    write_json(results / "predicted.json", {"kernels": {"pair_rows.finish": {}}})
    text = status.render([], results)
    header = ["kernel", "executed on the host", "executed as PTX", "compiled for", "predicted", "run on a GPU"]
    assert line(text, "kernel") == header
    assert line(text, "`pair_rows.finish`")[1:] == ["no", "no", "sm_80, sm_90", "yes", "never"]
    assert line(text, "`pairwise.finish`")[1:] == ["yes", "no", "sm_90", "no", "never"]
    assert line(text, "`_rows._prepare`")[1:3] == ["no", "yes"]


def test_a_tar_is_read_like_its_folder(folder, results, kept, tmp_path):
    with tarfile.open(tmp_path / "gpu.tar.xz", "w:xz") as tar:
        tar.add(folder, arcname=".")
    assert read_json(status.keep_run(tmp_path / "gpu.tar.xz", results)) == kept


def test_a_run_whose_first_step_was_cut_off(folder, results):
    (folder / "check" / "machine.json").unlink()
    path = status.keep_run(folder, results)
    assert path.name == "gpu-unknown.json"
    assert "## unknown\n\ntorch unknown, CUDA unknown" in status.render([read_json(path)], results)


def test_figures_of_triton_are_read_by_kernel(tmp_path):
    figures = {
        "90": {"pairwise._forward<fp32 D=3>": {}, "pairwise._forward<bf16 D=3>": {}},
        "100": {"_rows._add<fp32>": {}},
    }
    (tmp_path / "triton.json").write_text(json.dumps(figures), encoding="utf-8")
    found = status.compiled([tmp_path / "triton.json"])["triton"]
    assert found == {"_rows._add": ["100"], "pairwise._forward": ["90"]}
