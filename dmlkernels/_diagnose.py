"""One sentence for each thing that can be missing for the compiled kernels: what it is, and how to get it."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

FROM_SOURCE = "build it from source: pip install -e . --no-build-isolation in a clone"
OLDEST_GPU = (8, 0)  # asynchronous copies, and tensor-core products of bfloat16 and TF32, in CUDA as in Triton
NO_TF32X3 = 'float32 products "tf32x3" are for NVIDIA\'s tensor cores; on ROCm "ieee" is as accurate in one product'
# e_machine of an ELF file, as `platform.machine()` calls it.
_PROCESSORS = {21: "ppc64le", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def not_built(library: str) -> str:
    """There is no library of this name."""
    lacked = "no nvcc" if "cuda" in library else "no C++ compiler"
    return f"{library} was not built: {lacked} was there, or it was turned off; with one on the PATH {FROM_SOURCE}"


def other_processor(library: Path) -> str | None:
    """A library for another kind of processor, as on a disk that two machines share."""
    with library.open("rb") as file:
        header = file.read(20)
    built = _PROCESSORS.get(int.from_bytes(header[18:20], "little"))
    if header[:4] != b"\x7fELF" or built in (None, platform.machine()):
        return None
    return f"{library.name} was built for {built} and this processor is {platform.machine()}; {FROM_SOURCE} on it"


def no_cuda_in_torch(torch_version: str) -> str:
    """A CPU-only torch, whatever the machine has."""
    return f"this torch ({torch_version}) is a build without CUDA; where there is a GPU, install torch with CUDA"


def other_cuda(built: str, torch_cuda: str) -> str | None:
    """A library for one major version of CUDA beside a torch for another."""
    ours, theirs = (version.split(".")[0] for version in (built, torch_cuda))
    if not ours or ours == theirs:
        return None
    return (
        f"the CUDA kernels were built with CUDA {ours} and this torch brings CUDA {theirs}; install a torch for CUDA "
        f"{ours}, or with nvcc {theirs} on the PATH {FROM_SOURCE}"
    )


def serves(capability: tuple[int, int], architectures: Sequence[str]) -> str | None:
    """What of these architectures (in CMake's spelling) runs on a GPU of this compute capability, or None."""
    from_ptx = None
    for name in architectures:
        found = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", name)
        if found is None:
            continue
        number, suffix, kind = (int(found[1]), int(found[2])), found[3], found[4]
        # Machine code serves later minor versions, PTX all later versions, and what ends in "a" its own alone.
        newer = number == capability if suffix == "a" else number <= capability
        if kind != "-virtual" and newer and number[0] == capability[0]:
            return f"sm_{found[1]}{found[2]}{suffix}"
        if kind != "-real" and newer and not (suffix == "f" and number[0] != capability[0]):
            from_ptx = f"PTX of compute_{found[1]}{found[2]}{suffix}"
    return from_ptx


def unserved_gpu(capability: tuple[int, int], architectures: Sequence[str]) -> str:
    """A GPU that none of these architectures serves."""
    number = "{}.{}".format(*capability)
    if capability < OLDEST_GPU:
        return f"its compute capability is {number}, and the CUDA kernels need {OLDEST_GPU[0]}.{OLDEST_GPU[1]} or newer"
    return (
        f"its compute capability is {number}, and the library has only {', '.join(architectures)}; with nvcc on the "
        f"PATH and TORCH_CUDA_ARCH_LIST={number} {FROM_SOURCE}"
    )


@functools.cache
def unsupported_by_triton(index: int) -> str | None:
    """Why the Triton kernels cannot run on this GPU, or None; AMD's GPUs have other numbers, and are untested."""
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(index)
    if capability >= OLDEST_GPU:
        return None
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}, and they need "
        f"{OLDEST_GPU[0]}.{OLDEST_GPU[1]}"
    )
