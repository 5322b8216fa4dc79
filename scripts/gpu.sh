#!/usr/bin/env bash
# `make gpu`: what can only be shown on a GPU, in 9 minutes at most, with the python3 at hand, which has torch with CUDA.
# It begins with what `make gpu-wheel` made, build/gpu-wheel (a wheel, the rivals', Triton's cache), and needs neither git,
# make, a compiler nor a network. Results are in build/gpu/results, after every step (scripts/gpu_steps.py) in
# $OUT/gpu.tar.xz too if that is set, and at the end in bench/results and docs/gpu-status.md (scripts/gpu_status.py).
#   scripts/gpu.sh              everything
#   scripts/gpu.sh again        what failed or found no time, by build/gpu/results or by build/gpu-wheel/gpu.tar.xz
# DRY=1 goes as far as there is a way without a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
[[ $python = /* ]] || python=$PWD/$python
carried=$PWD/${CARRIED:-build/gpu-wheel}
work=$PWD/build/gpu

if [ -z "${DRY:-}" ] && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "make gpu: $python's torch sees no GPU here; DRY=1 shows how far it goes without one" >&2
  exit 2
fi
if ! compgen -G "$carried/dmlkernels-*.whl" >/dev/null; then
  echo "make gpu: there is no wheel in $carried; make gpu-wheel builds it, where there is a compiler" >&2
  exit 2
fi

# A folder of its own: in the tree Python would find dmlkernels/ without its libraries.
rm -rf "$work/run"
"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/run" "$carried"/*.whl
cp -r bench scripts tests pyproject.toml "$work/run"
if [ -f "$carried/triton.tar.xz" ]; then
  export TRITON_CACHE_DIR=$work/run/triton-cache
  mkdir "$TRITON_CACHE_DIR"
  tar -xf "$carried/triton.tar.xz" -C "$TRITON_CACHE_DIR"
  carried_entries=$(find "$TRITON_CACHE_DIR" -mindepth 1 -maxdepth 1 | wc -l)
fi

options=()
if [ "${1:-}" = again ]; then
  options=(--again)
  [ -d "$work/results" ] || { mkdir -p "$work/results" && tar -xf "$carried/gpu.tar.xz" -C "$work/results"; }
else
  rm -rf "$work/results"
fi
mkdir -p "$work/results"
cp "$carried/built.json" "$work/results"
cd "$work/run"
export PYTHONUNBUFFERED=1
code=0
"$python" -m scripts.gpu_steps "$work/results" "${options[@]}" || code=$?
if [ -n "${carried_entries:-}" ]; then
  echo "make gpu: Triton had $carried_entries entries, and made $(($(find "$TRITON_CACHE_DIR" -mindepth 1 -maxdepth 1 | wc -l) - carried_entries))"
fi
kept=("--results" "$work/../../bench/results" "--document" "$work/../../docs/gpu-status.md")
[ -z "${DRY:-}" ] || if [ -n "${carried_entries:-}" ]; then
  echo "make gpu: Triton had $carried_entries entries, and made $(($(find "$TRITON_CACHE_DIR" -mindepth 1 -maxdepth 1 | wc -l) - carried_entries))"
fi
kept=("--results" "$work" "--document" "$work/gpu-status.md")
"$python" -m scripts.gpu_status "${kept[@]}" read "$work/results"
exit "$code"
