#!/usr/bin/env bash
# CUDA's compiler from PyPI, for a machine that has none: `CUDA_HOME=$(scripts/get_nvcc.sh PYTHON)` installs it into that
# Python's environment. The version is that of the CUDA which torch 2.11, the oldest we serve, brings: the PTX of a newer
# one would need a newer driver.
set -euo pipefail
python=${1:-python3}
"$python" -m pip install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 \
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 >&2
home=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0] + "/cu13")')
# nvcc looks in lib64, and the linker for a name without a version; the packages have neither.
[ -e "$home/lib64" ] || ln -s lib "$home/lib64"
[ -e "$home/lib/libcudart.so" ] || ln -s libcudart.so.13 "$home/lib/libcudart.so"
echo "$home"
