"""Builds the native part with CMake; sources and flags stand in CMakeLists.txt, metadata in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# pip called as `.venv/bin/pip` does not put the environment's own cmake and ninja on PATH.
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def what_is_missing() -> str | None:
    """What a user has to install before native code can be built here, or None."""
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in compilers):
        return f"no C++ compiler ({', '.join(compilers)}); install one, on Debian: apt-get install g++"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "no Python.h; install Python's headers, on Debian: apt-get install python3-dev"
    return None


class CMakeBuild(build_ext):
    def run(self) -> None:
        if missing := what_is_missing():
            print(
                f"dmlkernels: installed WITHOUT native kernels: {missing}, and install dmlkernels again. "
                "Until then everything runs on the reference backend (plain PyTorch).",
                file=sys.stderr,
            )
            return
        cmake, ninja = (shutil.which(name, path=SEARCH_PATH) for name in ("cmake", "ninja"))
        if not cmake or not ninja:
            raise SystemExit("dmlkernels: cmake and ninja are needed to build: pip install cmake ninja")
        in_place = self.editable_mode or self.inplace
        # A wheel has CUDA where the package in place often has not: neither throws away what the other compiled.
        build = ROOT / "build" / f"{'native' if in_place else 'wheel'}-{sys.implementation.cache_tag}"
        package = (ROOT if in_place else Path(self.build_lib).resolve()) / "dmlkernels"
        configure = [
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DDMLKERNELS_CUDA={os.environ.get('DMLKERNELS_CUDA', 'auto')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *configure], check=True)
        subprocess.run([cmake, "--build", build], check=True)
        # A library of an earlier build that this one leaves out must not stay beside the new ones.
        shutil.rmtree(package / "lib", ignore_errors=True)
        subprocess.run([cmake, "--install", build, "--prefix", package], check=True)

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_outputs(self) -> list[str]:
        return []


setup(
    packages=[*find_packages(include=["dmlkernels", "dmlkernels.*"]), "dmlkernels.triton_kernels"],
    package_dir={"dmlkernels.triton_kernels": "triton_kernels"},
    ext_modules=[Extension("dmlkernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
