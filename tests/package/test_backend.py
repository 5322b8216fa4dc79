"""Which backend runs: the switches, the environment, torch.compile, and a package without its library."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest
import torch
from support.contract import Recorder

import dmlkernels
from dmlkernels import _backend, _diagnose, _triton, _verify
from dmlkernels import functional as F
from dmlkernels._autotable import FASTEST
from dmlkernels._contract import SCHEMAS

PACKAGE = Path(dmlkernels.__file__).parent

CALLS = {
    "pairwise": lambda x, y: F.pairwise_distance(x).sum(),
    "pair_loss": lambda x, y: F.ranked_list_loss(x, y),
    "nearest_positive": lambda x, y: F.nearest_positive(x, y).distance.sum(),
    "mine": lambda x, y: F.mine(x, y).neg_distance.sum(),
}


def data(device):
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(0)).to(device), (torch.arange(20) // 4).to(device)


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("DMLKERNELS_")}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        cwd=cwd,
        env={**env, "PYTHONPATH": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def restored():
    """Puts the settings of the package back."""
    backend, precision = dmlkernels.get_backend(), dmlkernels.get_float32_precision()
    yield
    dmlkernels.set_backend(backend)
    dmlkernels.set_float32_precision(precision)


# The switches.


def test_set_backend(restored):
    for name in ("auto", "native", "triton", "reference"):
        dmlkernels.set_backend(name)
        assert dmlkernels.get_backend() == name
    with pytest.raises(ValueError) as caught:
        dmlkernels.set_backend("cuda")
    assert str(caught.value) == "set_backend: name must be one of auto, native, triton, reference, got 'cuda'"
    assert dmlkernels.get_backend() == "reference"


def test_use_backend_nests_and_restores(restored):
    dmlkernels.set_backend("auto")
    with dmlkernels.use_backend("reference"):
        with dmlkernels.use_backend("native"):
            assert dmlkernels.get_backend() == "native"
        assert dmlkernels.get_backend() == "reference"
        with pytest.raises(KeyError), dmlkernels.use_backend("native"):
            raise KeyError
        assert dmlkernels.get_backend() == "reference"
        with pytest.raises(ValueError, match="got 'none'"), dmlkernels.use_backend("none"):
            pass
    assert dmlkernels.get_backend() == "auto"


def test_set_float32_precision(restored):
    assert dmlkernels.get_float32_precision() == "ieee"
    for name in ("tf32x3", "tf32", "bf16", "ieee"):
        dmlkernels.set_float32_precision(name)
        assert dmlkernels.get_float32_precision() == name
    with pytest.raises(ValueError) as caught:
        dmlkernels.set_float32_precision("high")
    words = "set_float32_precision: precision must be one of ieee, tf32x3, tf32, bf16, got 'high'"
    assert str(caught.value) == words


@pytest.mark.parametrize("name", CALLS)
def test_unavailable_backend_says_why(name, monkeypatch, restored):
    monkeypatch.setitem(_backend.loaded, "native", set())
    monkeypatch.setitem(_backend.missing, ("native", "cpu"), "libdmlkernels_cpu.so was not built; build it")
    op = {"pairwise": "pairwise_distance", "pair_loss": "ranked_list_loss"}.get(name, name)
    dmlkernels.set_backend("native")
    with pytest.raises(RuntimeError) as caught:
        CALLS[name](*data("cpu"))
    assert str(caught.value) == (
        f'{op}: backend "native" is not available for cpu tensors: libdmlkernels_cpu.so was not built; build it. '
        'Call dmlkernels.set_backend("auto") or "reference", or see `python -m dmlkernels info`.'
    )
    dmlkernels.set_backend("auto")
    value = CALLS[name](*data("cpu"))
    dmlkernels.set_backend("reference")
    assert torch.equal(value, CALLS[name](*data("cpu")))


def test_triton_takes_no_cpu_tensor_without_its_interpreter(tmp_path):
    code = """
import torch, dmlkernels, sys
dmlkernels.set_backend("triton")
assert "triton" not in sys.modules
dmlkernels.functional.pairwise_similarity(torch.eye(2))
"""
    done = python(code, tmp_path, PYTHONPATH=str(PACKAGE.parent), TRITON_INTERPRET="0")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        'RuntimeError: pairwise_similarity: backend "triton" is not available for cpu tensors: Triton takes CPU '
        "tensors only in its interpreter, for tests: set TRITON_INTERPRET=1 before Python starts. "
        'Call dmlkernels.set_backend("auto") or "reference", or see `python -m dmlkernels info`.'
    )


def test_triton_that_is_not_installed(tmp_path):
    code = """
import sys
sys.modules["triton"] = None
import dmlkernels
print(dmlkernels._backend.missing["triton", "cpu"])
"""
    done = python(code, tmp_path, PYTHONPATH=str(PACKAGE.parent))
    assert done.stdout == "Triton is not installed; pip install triton\n"


@pytest.fixture
def gpu(monkeypatch):
    """Looks like a GPU to the choice of a backend."""
    _diagnose.unsupported_by_triton.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setitem(_backend.loaded, "native", {"cuda"})
    monkeypatch.setitem(_backend.loaded, "triton", {"cuda"})
    yield torch.device("cuda", 0)
    _diagnose.unsupported_by_triton.cache_clear()


def test_auto_takes_the_faster_one(gpu, monkeypatch):
    assert _backend.namespace("mine", gpu) == "dmlkernels"
    monkeypatch.setitem(FASTEST, "Some GPU", {"mine": "triton"})
    assert _backend.namespace("mine", gpu) == "dmlkernels_triton"
    assert _backend.namespace("ranked_list_loss", gpu) == "dmlkernels"
    monkeypatch.setitem(_backend.loaded, "native", set())
    assert _backend.namespace("ranked_list_loss", gpu) == "dmlkernels_triton"


@pytest.fixture
def rocm(gpu, monkeypatch):
    """Looks like a GPU of a torch for ROCm."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (1, 0))
    monkeypatch.setitem(_backend.loaded, "native", set())
    return gpu


def test_rocm_has_triton_kernels(rocm):
    assert _backend.namespace("mine", rocm) == "dmlkernels_triton"
    assert _diagnose.unsupported_by_triton(0) is None


@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def test_rocm_takes_whole_products_of_float32(rocm, monkeypatch, precision):
    """As the launcher would see them, if there were such a tensor here."""
    fake = unittest.mock.Mock(spec=torch.Tensor, device=rocm)
    monkeypatch.setattr(_triton, "_launcher", lambda operator: lambda **named: "launched")
    monkeypatch.setattr(_verify, "check", lambda *arguments, **named: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    arguments = (fake, None, "dot", True, precision)
    if precision == "ieee":
        assert _triton._launch("pairwise_fwd", *arguments) == "launched"
    else:
        with pytest.raises(RuntimeError, match='pairwise_fwd: float32 products "tf32x3" are for NVIDIA'):
            _triton._launch("pairwise_fwd", *arguments)


def test_xpu_is_refused():
    with (
        dmlkernels.use_backend("triton"),
        pytest.raises(RuntimeError, match=r"not available for xpu tensors: the Triton kernels are for GPUs of NVIDIA"),
    ):
        _backend.namespace("mine", torch.device("xpu"))


def test_a_gpu_that_triton_does_not_support(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 0))
    assert _diagnose.unsupported_by_triton(0) == "Some GPU has compute capability 7.0, and they need 8.0"
    monkeypatch.setitem(FASTEST, "Some GPU", {"mine": "triton"})
    assert _backend.namespace("mine", gpu) == "dmlkernels"
    monkeypatch.setitem(_backend.loaded, "native", set())
    assert _backend.namespace("mine", gpu) is None


# What runs.


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_is_what_runs(kernel, device, name):
    """Forward and backward are one operator each of the backend that was asked for, without a product of eager mode."""
    x, y = data(device)
    with Recorder() as recorder:
        CALLS[name](x.requires_grad_(), y).backward()
    namespace = _backend.namespaces[kernel.name]
    ours = [n for n in recorder.names if n.startswith("dmlkernels")]
    assert ours == [f"{namespace}.{name}_fwd.default", f"{namespace}.{name}_bwd.default"]
    assert not any(n.startswith(("aten.mm", "aten.bmm", "aten.matmul", "aten._cdist")) for n in recorder.names)


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_uses_no_kernel(name):
    x, y = data("cpu")
    with dmlkernels.use_backend("reference"), Recorder() as recorder:
        CALLS[name](x.requires_grad_(), y).backward()
    assert "aten.mm.default" in recorder.names
    assert not any(n.startswith("dmlkernels") for n in recorder.names)


def test_auto_prefers_the_kernels(kernel, device):
    x, y = data(device)
    with dmlkernels.use_backend("auto"), Recorder() as recorder:
        F.ranked_list_loss(x, y)
    assert any(n.startswith("dmlkernels") for n in recorder.names)


@pytest.mark.parametrize("op", SCHEMAS)
def test_schemas(kernel, op):
    """Every operator of every namespace has the one schema, and a kernel behind it."""
    overload = getattr(kernel.operators, op).default
    namespace = _backend.namespaces[kernel.name]
    assert overload._schema == torch._C.parse_schema(f"{namespace}::{op}{SCHEMAS[op]}")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{op}", kernel.device.upper())


def test_switch_under_compile_recompiles_once(backend, device):
    torch.compiler.reset()
    graphs = []

    def counting(graph, example_inputs):
        graphs.append(str(graph.code))
        return graph.forward

    compiled = torch.compile(F.pairwise_similarity, backend=counting, fullgraph=True)
    x, _ = data(device)
    names = (backend.name, "auto", "reference")
    expected = []
    for name in names:
        with dmlkernels.use_backend(name):
            expected.append(F.pairwise_similarity(x))
    for turn in range(3):
        for name, value in zip(names, expected, strict=True):
            with dmlkernels.use_backend(name):
                assert torch.equal(compiled(x), value), f"turn {turn}"
    assert len(graphs) == len(set(names))
    with dmlkernels.use_backend("reference"):
        assert torch.equal(compiled(x), expected[-1])
        assert "dmlkernels" not in graphs[names.index("reference") if backend.name != "reference" else 0]


# The environment, and a package without its library.


def test_environment(tmp_path):
    code = "import dmlkernels; print(dmlkernels.get_backend())"
    path = str(PACKAGE.parent)
    assert python(code, tmp_path, PYTHONPATH=path, DMLKERNELS_BACKEND="reference").stdout == "reference\n"
    assert python(code, tmp_path, PYTHONPATH=path).stdout == "auto\n"
    wrong = python(code, tmp_path, PYTHONPATH=path, DMLKERNELS_BACKEND="fast")
    assert wrong.returncode == 1
    words = "DMLKERNELS_BACKEND must be one of auto, native, triton, reference, got 'fast'"
    assert words in wrong.stderr.splitlines()[-1]


WITHOUT_LIBRARY = """
import torch, dmlkernels
from dmlkernels import functional as F
x, y = torch.randn(8, 4, requires_grad=True), torch.arange(8) // 2
F.ranked_list_loss(x, y).backward()
assert x.grad.isfinite().all()
assert dmlkernels.losses.TripletMarginLoss()(x, y).isfinite()
dmlkernels.set_backend("native")
try:
    F.nearest_positive(x, y)
except RuntimeError as error:
    print(error)
try:
    torch.ops.dmlkernels.pairwise_fwd(x, None, "dot", True, "ieee")
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize("library", ["absent", "broken"])
def test_without_the_library(tmp_path, library):
    """The package imports, says once in one sentence what is missing and how to get it, and runs on the reference."""
    shutil.copytree(PACKAGE, tmp_path / "dmlkernels", ignore=shutil.ignore_patterns("lib", "*.so", "__pycache__"))
    why = "libdmlkernels_cpu.so was not built"
    if library == "broken":
        (tmp_path / "dmlkernels" / "lib").mkdir()
        (tmp_path / "dmlkernels" / "lib" / "libdmlkernels_cpu.so").write_bytes(b"not a library")
        why = "libdmlkernels_cpu.so does not load here"
    done = python(WITHOUT_LIBRARY, tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "dmlkernels:" in line]
    assert len(warnings) == 1
    assert "UserWarning: dmlkernels: the native CPU kernels are not loaded, CPU tensors use the plain" in warnings[0]
    assert f"({why}" in warnings[0]
    assert "pip install -e . --no-build-isolation" in warnings[0]
    refused, direct, *_ = done.stdout.splitlines()
    assert refused.startswith(f'nearest_positive: backend "native" is not available for cpu tensors: {why}')
    assert direct.startswith("Could not run 'dmlkernels::pairwise_fwd' with arguments from the 'CPU' backend")
