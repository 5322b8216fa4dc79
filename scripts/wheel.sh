#!/usr/bin/env bash
# `make wheel`: the wheel of this Python with the CPU library and the CUDA library for every architecture, repaired to
# the oldest manylinux tag that this machine's C library allows, checked, and tried where there is no compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PWD/.venv/bin:$PATH DMLKERNELS_CUDA=${DMLKERNELS_CUDA:-all}

# setuptools copies into these and never takes away what is no longer there.
rm -rf build/lib.* build/bdist.* build/wheel wheelhouse
SECONDS=0
python -m pip wheel . --quiet --no-build-isolation --no-deps -w build/wheel
echo "wheel: built in $SECONDS s"

scripts/repair_wheel.sh build/wheel/*.whl wheelhouse
python scripts/try_wheel.py wheelhouse/*.whl
