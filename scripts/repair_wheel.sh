#!/usr/bin/env bash
# Gives a wheel the oldest manylinux tag that holds for it, and checks it: `scripts/repair_wheel.sh WHEEL FOLDER`.
set -euo pipefail
# torch brings these libraries; a second copy of any of them in one process would be another torch, or another CUDA.
auditwheel repair "$1" -w "$2" \
  --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcudart*' --exclude 'libnvrtc*' --exclude 'libgomp*'
python "$(dirname "$0")/check_wheel.py" "$2"/*.whl
