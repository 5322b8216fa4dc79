"""`python -m dmlkernels info`, and the one sentence for each thing that can be missing."""

from __future__ import annotations

import platform

import pytest
import torch

from dmlkernels import _backend, _diagnose, _info, _library

ELF = b"\x7fELF\x02\x01\x01" + bytes(11)
X86, ARM = (62).to_bytes(2, "little"), (183).to_bytes(2, "little")
BUILT = {"cuda": True, "cuda_architectures": ["90-real"], "cuda_version": "13.0.88"}
EVERY = ["80-real", "90-real", "100-real", "120"]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_LIBRARY_DIR", tmp_path)
    return tmp_path


@pytest.fixture
def cuda_torch(monkeypatch):
    """A torch with CUDA 13."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_no_compiler(folder):
    assert _library._load("cpu") == (
        "libdmlkernels_cpu.so was not built: no C++ compiler was there, or it was turned off; with one on the PATH "
        "build it from source: pip install -e . --no-build-isolation in a clone"
    )


def test_no_nvcc(folder, cuda_torch):
    assert "libdmlkernels_cuda.so was not built: no nvcc was there, or it was turned off" in _library._load("cuda")


def test_torch_without_cuda(folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    why = _library._load("cuda")
    assert why.startswith(f"this torch ({torch.__version__}) is a build without CUDA; ")
    assert why.endswith("install torch with CUDA")


def test_another_processor(folder, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    (folder / "libdmlkernels_cpu.so").write_bytes(ELF + X86)
    assert _library._load("cpu").startswith(
        "libdmlkernels_cpu.so was built for x86_64 and this processor is aarch64; build it from source"
    )


@pytest.mark.parametrize("content", [ELF + X86, b"", b"text", ELF + b"\0\0"])
def test_a_file_for_this_processor_or_none_is_no_other_processor(tmp_path, monkeypatch, content):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (tmp_path / "lib.so").write_bytes(content)
    assert _diagnose.other_processor(tmp_path / "lib.so") is None


def test_a_torch_for_another_cuda(folder, monkeypatch):
    (folder / "libdmlkernels_cuda.so").write_bytes(b"")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_library, "_built_with_cuda", lambda: "13.0.88")
    assert _library._load("cuda") == (
        "the CUDA kernels were built with CUDA 13 and this torch brings CUDA 12; install a torch for CUDA 13, or with "
        "nvcc 12 on the PATH build it from source: pip install -e . --no-build-isolation in a clone"
    )


def test_the_same_cuda_or_an_unknown_one_is_tried():
    assert _diagnose.other_cuda("13.0.88", "13.2") is None
    assert _diagnose.other_cuda("", "12.8") is None


def test_what_the_system_says_of_a_broken_library_is_kept(folder, cuda_torch, monkeypatch):
    monkeypatch.setattr(_library, "_built_with_cuda", lambda: "13.0")
    (folder / "libdmlkernels_cuda.so").write_bytes(b"not a library")
    assert _library._load("cuda").startswith("libdmlkernels_cuda.so does not load here (")


def test_a_library_that_lacks_kernels_is_not_used(folder, monkeypatch):
    (folder / "libdmlkernels_cpu.so").write_bytes(b"")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: "pairwise" not in name)
    assert _library._load("cpu") == "libdmlkernels_cpu.so has no kernel yet for pairwise_fwd, pairwise_bwd"


@pytest.mark.parametrize(
    "capability, architectures, served",
    [
        ((8, 0), EVERY, "sm_80"),
        ((8, 9), EVERY, "sm_80"),
        ((9, 0), EVERY, "sm_90"),
        ((10, 3), EVERY, "sm_100"),
        ((12, 1), EVERY, "sm_120"),
        ((13, 0), EVERY, "PTX of compute_120"),
        ((11, 0), EVERY, None),
        ((7, 5), EVERY, None),
        ((8, 0), ["90-real"], None),
        ((9, 0), ["80-virtual"], "PTX of compute_80"),
        ((9, 0), ["90a-real"], "sm_90a"),
        ((10, 0), ["90a"], None),
        ((10, 3), ["100f-real"], "sm_100f"),
        ((12, 0), ["100f"], None),
        ((9, 0), ["native"], None),
    ],
)
def test_what_runs_on_a_gpu(capability, architectures, served):
    assert _diagnose.serves(capability, architectures) == served


def info() -> dict[str, str]:
    return dict(_info.lines())


def test_info_names_everything():
    shown = info()
    assert {"torch", "python", "native cpu", "native cuda", "triton cpu", "triton cuda"} <= set(shown)
    for (backend, device), why in _backend.missing.items():
        assert shown[f"{backend} {device}"] == f"no: {why}"
    assert "gpu" not in shown or torch.version.cuda is not None


def test_info_without_a_gpu(cuda_torch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info()["gpu"].startswith("no: torch sees none here")


@pytest.mark.parametrize(
    "capability, text",
    [
        ((9, 0), "Name, 9.0: sm_90"),
        ((7, 0), "Name, 7.0: no kernels, its compute capability is 7.0, and the CUDA kernels need 8.0 or newer"),
        (
            (8, 6),
            "Name, 8.6: no kernels, its compute capability is 8.6, and the library has only 90-real; with nvcc on the "
            "PATH and TORCH_CUDA_ARCH_LIST=8.6 build it from source: pip install -e . --no-build-isolation in a clone",
        ),
    ],
)
def test_info_of_a_gpu(cuda_torch, capability, text, monkeypatch):
    _C = pytest.importorskip("dmlkernels._C", reason="built without a compiler")
    built = _C.build_info() | BUILT
    monkeypatch.setattr(_C, "build_info", lambda: built)
    monkeypatch.setitem(_backend.loaded, "native", {"cpu", "cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Name")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    shown = info()
    assert shown["gpu 0"] == text
    assert shown["native cuda"] == "yes, for 90-real (built with CUDA 13.0.88)"


def test_info_of_a_library_that_is_not_loaded(monkeypatch):
    _C = pytest.importorskip("dmlkernels._C", reason="built without a compiler")
    built = _C.build_info() | BUILT
    monkeypatch.setattr(_C, "build_info", lambda: built)
    monkeypatch.setitem(_backend.loaded, "native", {"cpu"})
    monkeypatch.setitem(_backend.missing, ("native", "cuda"), "why")
    shown = info()
    assert shown["native cuda"] == "no: why"
    assert shown["cuda library"] == "there, for 90-real (built with CUDA 13.0.88)"
    monkeypatch.setitem(built, "cuda", False)
    assert "cuda library" not in info()
