"""What the build promises: one name in every layer, clean binaries, and a package that works without them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.sources import CSRC, reachable_includes, registered

import dmlkernels

ROOT = Path(__file__).resolve().parents[2]
OPS = sorted(path.stem for path in (ROOT / "dmlkernels" / "ops").glob("[a-z]*.py"))
KERNEL_UNITS = sorted((CSRC / "cpu" / "kernels").glob("*.cpp"))
LIBRARIES = sorted((ROOT / "dmlkernels" / "lib").glob("*.so"))
OBJECTS = sorted(
    path
    for isa in ("avx2", "avx512")
    for unit in KERNEL_UNITS
    for path in ROOT.glob(f"build/native-{sys.implementation.cache_tag}/CMakeFiles/kernels_{isa}.dir/**/{unit.name}.o")
)
LAYERS = (
    "csrc/common/{op}.h",
    "csrc/cpu/{op}.cpp",
    "csrc/cpu/kernels/{op}.cpp",
    "dmlkernels/ops/{op}.py",
    "dmlkernels/reference/{op}.py",
    "triton_kernels/{op}.py",
    "tests/ops/test_{op}.py",
    "bench/kernels/bench_{op}.py",
)

needs_native = pytest.mark.skipif(not LIBRARIES, reason="built without a compiler")


def nm(path: Path, *options: str) -> list[tuple[str, str]]:
    """Type and name of every symbol that `nm` lists."""
    text = subprocess.run(["nm", *options, path], capture_output=True, text=True, check=True).stdout
    return [tuple(line[17:].strip().split(" ", 1)) for line in text.splitlines() if line[17:].strip()]


def test_there_are_ops():
    assert {"pairwise", "pair_loss", "nearest_positive"} <= set(OPS)
    assert len(KERNEL_UNITS) >= 3


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("op", OPS)
def test_same_name_in_every_layer(op, layer):
    if op == "spherical_expansion" and "/kernels/" in layer:
        # One sample at a time, a few dot products and sums each: the kernels on rows serve it.
        assert "cpu/rows_kernels.h" in reachable_includes(CSRC / "cpu" / "spherical_expansion.cpp")
        return
    assert (ROOT / layer.format(op=op)).is_file()


@pytest.mark.parametrize("op", OPS)
def test_operators_are_registered_in_their_file(op):
    from dmlkernels._contract import SCHEMAS

    own = {name for name in (f"{op}_fwd", f"{op}_bwd") if name in SCHEMAS}
    assert f"{op}_fwd" in own
    assert own <= registered(CSRC / "cpu" / f"{op}.cpp")


def test_every_schema_is_registered_and_nothing_else():
    from dmlkernels._contract import SCHEMAS

    assert set().union(*map(registered, CSRC.glob("cpu/*.cpp"))) == set(SCHEMAS)


@pytest.mark.parametrize("unit", [*KERNEL_UNITS, CSRC / "module.cpp"], ids=lambda path: path.stem)
def test_no_torch_header_is_reachable(unit):
    assert [name for name in reachable_includes(unit) if re.match(r"(torch|ATen|c10)/", name)] == []


@needs_native
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_library_uses_the_stable_abi_only(library):
    undefined = [name for _, name in nm(library, "-D", "--undefined-only")]
    assert undefined
    assert [name for name in undefined if re.search(r"NK?(2at|3c10|5torch)\d|^_?Py[A-Z_]", name)] == []


@needs_native
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.stem)
def test_library_keeps_its_functions_to_itself(library):
    exported = [name for _, name in nm(library, "-D", "--defined-only")]
    assert [name for name in exported if re.search(r"NK?(3dml|5torch)\d", name)] == []


@needs_native
@pytest.mark.parametrize("unit", OBJECTS, ids=lambda path: f"{path.parts[-5]}-{path.stem}")
def test_vector_units_share_no_function(unit):
    # The linker keeps one copy of a weak function; were it the AVX one, the plain path would die on an older processor.
    isa = re.search(r"kernels_(\w+)\.dir", str(unit)).group(1)
    shared = [name for kind, name in nm(unit, "-C") if kind in "WVu" and f"{isa}::" not in name]
    assert [name for name in shared if not name.startswith("DW.ref.")] == []


@needs_native
def test_vector_units_were_found():
    from dmlkernels import _C

    isas = set(_C.build_info()["cpu_isas"]) - {"plain"}
    assert len(OBJECTS) == len(isas) * len(KERNEL_UNITS)


@needs_native
def test_build_info():
    from dmlkernels import _C

    info = _C.build_info()
    assert info["version"] == dmlkernels.__version__
    assert info["cpu_isas"][0] == "plain"
    assert info["cuda"] == any("cuda" in path.name for path in LIBRARIES)
    assert info["cuda"] == bool(info["cuda_architectures"]) == bool(info["cuda_version"])
    assert _C.constants()["torch_target_version"] == (2, 11)


@needs_native
def test_stub_names_what_the_module_has():
    from dmlkernels import _C

    stub = re.findall(r"^def (\w+)", (ROOT / "dmlkernels" / "_C.pyi").read_text(), re.MULTILINE)
    assert sorted(stub) == sorted(name for name in vars(_C) if not name.startswith("_"))


def cpu_capability(requested: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dmlkernels import _C; print(_C.cpu_capability())"],
        env=os.environ | {"DMLKERNELS_CPU_ISA": requested},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.full
@needs_native
@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_cpu_isa_is_lowered_or_refused(isa):
    from dmlkernels import _C

    order = ["plain", "avx2", "avx512"]
    result = cpu_capability(isa)
    if order.index(isa) <= order.index(cpu_capability("").stdout.strip()):
        assert result.stdout.strip() == isa
    else:
        assert f"DMLKERNELS_CPU_ISA={isa}" in result.stderr
    assert isa in _C.build_info()["cpu_isas"] or result.returncode != 0


@needs_native
def test_unknown_cpu_isa_is_refused():
    result = cpu_capability("sse9")
    assert result.returncode != 0
    assert 'DMLKERNELS_CPU_ISA must be plain, avx2 or avx512, got "sse9"' in result.stderr


def test_versions_agree():
    assert dmlkernels.__version__ == version("dmlkernels")


def test_installed_name_of_the_triton_folder():
    import dmlkernels.triton_kernels

    assert Path(dmlkernels.triton_kernels.__file__).parent == ROOT / "triton_kernels"


def test_works_without_library_and_triton(tmp_path):
    shutil.copytree(ROOT / "dmlkernels", tmp_path / "dmlkernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
sys.modules["triton"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import dmlkernels
assert dmlkernels.__file__.startswith(sys.argv[1]), dmlkernels.__file__
said = [str(w.message) for w in caught if "dmlkernels" in str(w.message)]
assert len(said) == 1 and "libdmlkernels_cpu.so" in said[0], said
import torch
from dmlkernels import functional as F
x = torch.randn(12, 4, requires_grad=True)
loss = F.ranked_list_loss(x, torch.arange(12) // 3)
loss.backward()
assert loss.isfinite() and x.grad.abs().sum() > 0
try:
    dmlkernels.set_backend("native")
    F.ranked_list_loss(x, torch.arange(12) // 3)
except Exception as error:
    print("refused:", error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("refused:")
    assert "libdmlkernels_cpu.so" in result.stdout
