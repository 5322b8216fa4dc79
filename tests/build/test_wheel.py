"""What `make wheel` refuses to hand out."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "dmlkernels-0-cp311-cp311-manylinux_2_28_x86_64.whl"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / "scripts" / "check_wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def names(check) -> set[str]:
    return check.expected() | {"dmlkernels/_C.cpython-311-x86_64-linux-gnu.so", "dmlkernels-0.dist-info/WHEEL"}


@pytest.fixture
def tool(check, monkeypatch):
    """Answers in the place of nm and readelf."""
    answers = {"nm": "", "readelf": "(NEEDED) [libtorch_cuda.so]\n(NEEDED) [libcudart.so.13]"}
    monkeypatch.setattr(check, "_tool", lambda name, *arguments: answers[name])
    return answers


def problems(check, folder: Path, names: set[str], name: str = NAME) -> list[str]:
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in names:
            archive.writestr(file, "")
    return check.problems_of(folder / name)


def test_a_whole_wheel_passes(check, names, tool, tmp_path):
    assert {"dmlkernels/lib/libdmlkernels_cuda.so", "dmlkernels/triton_kernels/__init__.py"} <= names
    assert problems(check, tmp_path, names) == []


@pytest.mark.parametrize(
    "part", ["lib/libdmlkernels_cuda.so", "triton_kernels/__init__.py", "py.typed", "ops/pairwise.py"]
)
def test_a_missing_part_is_named(check, names, tool, part, tmp_path):
    assert problems(check, tmp_path, names - {f"dmlkernels/{part}"}) == [f"lacks dmlkernels/{part}"]


def test_a_wheel_without_the_module_is_refused(check, names, tool, tmp_path):
    names = {name for name in names if "_C.cpython" not in name}
    assert problems(check, tmp_path, names) == ["lacks the module dmlkernels._C"]


def test_nothing_is_installed_outside_the_package(check, names, tool, tmp_path):
    (problem,) = problems(check, tmp_path, names | {"triton_kernels/__init__.py"})
    assert problem.startswith("has triton_kernels/__init__.py")


def test_size_and_tag(check, names, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "LARGEST", 100)
    sized, tagged = problems(check, tmp_path, names, "dmlkernels-0-cp311-cp311-linux_x86_64.whl")
    assert "more than" in sized
    assert "no manylinux tag" in tagged


@pytest.mark.parametrize(
    "symbol",
    [
        "_ZN2at4_ops2mm4callERKNS_6TensorES4_",
        "_ZNK3c1010TensorImpl5sizesEv",
        "_ZN5torch8autogradE",
        "PyObject_Str",
        "_Py_Dealloc",
    ],
)
def test_symbols_of_one_torch_or_one_python_are_refused(check, symbol, tool, tmp_path):
    tool["nm"] = f"                 U {symbol}\n                 U aoti_torch_empty_strided\n"
    assert check.wrong_symbols(tmp_path / "lib.so") == [f"lib.so needs {symbol}"]


def test_search_paths_and_unnamed_libraries_are_refused(check, tool, tmp_path):
    tool["readelf"] = "(RUNPATH) [/home/me]\n(NEEDED) [libcudart.so.13]"
    assert check.wrong_symbols(tmp_path / "libcuda.so") == [
        "libcuda.so has a search path of the machine that built it",
        "libcuda.so does not name libtorch_cuda.so",
    ]
