#!/usr/bin/env bash
# `make gpu-wheel`: what `make gpu` begins with, in build/gpu-wheel, all in all less than 64 MB: the wheel for the machine
# with the GPU, that of the rival, and Triton's cache, whose kernels would take a quarter of an hour to compile there.
# The python on the PATH is one of that machine's version, and has its torch and its Triton.
set -euo pipefail
cd "$(dirname "$0")/.."
carried=build/gpu-wheel work=build/gpu-wheel.work
architectures=${CMAKE_CUDA_ARCHITECTURES:-90-real}
most=64000000 # bytes

if ! command -v nvcc >/dev/null; then
  CUDA_HOME=$(scripts/get_nvcc.sh python)
  export CUDA_HOME
fi
rm -rf "$carried" "$work"
mkdir -p "$carried" "$work"
DMLKERNELS_CUDA=on CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_CUDA_ARCHITECTURES=$architectures" \
  python -m pip wheel . --quiet --no-build-isolation --no-deps -w "$carried"
python -m pip wheel pytorch-metric-learning==2.9.0 --quiet --no-deps -w "$carried"

# As scripts/gpu.sh lays it out: sources decide on names in the cache, by their text.
python -m pip install --quiet --no-index --no-deps --target "$work/run" "$carried"/*.whl
cp -r bench scripts tests pyproject.toml "$work/run"
code=0
(cd "$work/run" && python -m scripts.gpu_cache ../triton) || code=$?
# A kernel is loaded from its machine code and the facts about it; what it was made from is not read.
find "$work/triton" -name '*.source' -o -name '*.ttir' -o -name '*.ttgir' -o -name '*.llir' -o -name '*.ptx' | xargs rm -f
tar -cJf "$carried/triton.tar.xz" -C "$work/triton" .
# Another process, in another folder, finds what it asks for.
mkdir "$work/unpacked"
tar -xf "$carried/triton.tar.xz" -C "$work/unpacked"
(cd "$work/run" && python -m scripts.gpu_cache ../unpacked --parts bench --whole) || code=$?

commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD -- csrc dmlkernels triton_kernels || commit="$commit with changes"
(cd "$work/run" && python -m scripts.gpu_status built dmlkernels/lib/libdmlkernels_cuda.so "$commit") >"$carried/built.json"

size=$(du -sb "$carried" | cut -f 1)
echo "make gpu-wheel: $size bytes in $carried"
[ "$size" -le "$most" ] || { echo "make gpu-wheel: more than $most bytes, which is what can be carried" >&2; exit 1; }
exit "$code"
