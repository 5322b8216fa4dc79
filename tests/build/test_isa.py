"""Every instruction set runs on the processors it is for: the kernels, without torch, as emulated older processors."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_host import backend as cuda_host

from dmlkernels import _backend

pytestmark = pytest.mark.skipif("cpu" not in _backend.loaded["native"], reason="no native library to emulate")


@pytest.fixture(scope="module")
def driver() -> Path:
    if cuda_host.cannot_build():
        pytest.skip("needs the build folder of an editable install")
    return cuda_host.build("isa_driver")


def _run(command: list[str | Path]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, f"{finished.returncode}: {finished.stdout}{finished.stderr}"
    return finished.stdout.strip()


def test_kernels_of_this_processor(driver: Path) -> None:
    from dmlkernels import _C

    assert _run([driver]) == _C.cpu_capability()


@pytest.mark.full
@pytest.mark.parametrize(("processor", "isa"), [("Nehalem", "plain"), ("Haswell", "avx2"), ("max", "avx2")])
def test_kernels_under_emulation(driver: Path, processor: str, isa: str) -> None:
    emulator = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if emulator is None:
        pytest.skip("needs Debian's qemu-user")
    assert _run([emulator, "-cpu", processor, driver]) == isa
