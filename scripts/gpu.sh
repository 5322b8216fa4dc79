#!/usr/bin/env bash
# `make gpu STAGE=build|test|sanitize|bench`: what can only be shown on a GPU, for the python3 at hand, without a network.
# Each stage takes 8 minutes at most, builds first where nothing is built, and writes bench/results/gpu-<device>.json and
# docs/gpu-status.md, into $OUT too if that is set. With DRY=1 the stages run on the host as far as they go there: the
# build is configured, tests, smoke set and benchmark run at small sizes on CPU tensors, and the results go to build/gpu.
set -euo pipefail
cd "$(dirname "$0")/.."
stage=${1:?build, test, sanitize or bench}
dry=${DRY:-}
python=${PYTHON:-python3}
work=build/gpu
mkdir -p "$work"
SECONDS=0
export PYTHONUNBUFFERED=1
status=("$python" scripts/gpu_status.py)
[ -z "$dry" ] || status+=(--results "$work" --document "$work/gpu-status.md")

# Wheels of the rivals, for a machine that reaches no registry.
if compgen -G '.whl/*.whl' >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --upgrade --target "$work/rivals" .whl/*.whl
  export PYTHONPATH=$PWD/$work/rivals
fi

left() { # seconds until this stage has taken 8 minutes
  echo $((SECONDS < 460 ? 470 - SECONDS : 10))
}

share() {
  [ -z "${OUT:-}" ] || cp -r bench/results/gpu-*.json docs/gpu-status.md "$work"/*.log "$OUT" 2>/dev/null || true
}
trap share EXIT

build() {
  if [ -n "$dry" ]; then
    cmake -G Ninja -S . -B "$work/cmake" -DPython_EXECUTABLE="$(command -v "$python")" -DDMLKERNELS_CUDA=on \
      -DCMAKE_CUDA_ARCHITECTURES=90-real
    ninja -C "$work/cmake" -n dmlkernels_cuda | tail -n 1
    return
  fi
  DMLKERNELS_CUDA=on CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
    "$python" -m pip install --no-index --no-deps --no-build-isolation -e .
  "$python" -m dmlkernels info
  "$python" -c 'import json, sys; from dmlkernels import _C
json.dump({"architectures": _C.build_info()["cuda_architectures"], "seconds": int(sys.argv[1])}, sys.stdout)' \
    "$SECONDS" >"$work/build.json"
  "${status[@]}" record build "$work/build.json"
}

run_tests() {
  local failed=0 ours=native-cpu reports=("$work/large.xml")
  [ -n "$dry" ] || ours='native-cuda or triton-cuda'
  # The largest sizes alone and first: they need most of the memory.
  timeout 120 "$python" -m pytest -q -m "not slow" tests/ops/test_large.py -k "$ours" --junitxml="$work/large.xml" 2>&1 |
    tee "$work/large.log" || failed=1
  if [ -z "$dry" ]; then
    reports+=("$work/test.xml")
    timeout "$(left)" "$python" -m pytest -q -m "not slow" -n 8 --dist worksteal -k "$ours" --ignore tests/ops/test_large.py \
      --junitxml="$work/test.xml" 2>&1 | tee "$work/test.log" || failed=1
  fi
  "${status[@]}" record test "${reports[@]}"
  return "$failed"
}

sanitize() {
  local failed=0 results=() tool code verdict
  if [ -n "$dry" ]; then
    "$python" scripts/gpu_smoke.py cpu
    return
  fi
  # A block that the allocator caches is larger than the tensor in it: overruns would stay unseen.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck synccheck; do
    code=0
    timeout 105 compute-sanitizer --tool "$tool" --error-exitcode 9 --kernel-name kns=_ZN3dml \
      "$python" scripts/gpu_smoke.py cuda >"$work/$tool.log" 2>&1 || code=$?
    case $code in
      0) verdict=clean ;;
      9) verdict='**errors**' ;;
      124) verdict='not finished in 105 s' ;;
      *) verdict="**did not run (exit status $code)**" ;;
    esac
    [ "$code" = 0 ] || failed=1
    tail -n 3 "$work/$tool.log"
    results+=("\"$tool\": \"$verdict\"")
  done
  (IFS=,; echo "{\"tools\": {${results[*]}}}") >"$work/sanitize.json"
  "${status[@]}" record sanitize "$work/sanitize.json"
  return "$failed"
}

bench() {
  local failed=0
  timeout "$(left)" "$python" -m bench.kernels.run --device cuda ${dry:+--dry} --out "$work/bench.json" 2>&1 |
    tee "$work/bench.log" || failed=1
  "${status[@]}" record bench "$work/bench.json"
  return "$failed"
}

if [ -z "$dry" ] && ! "$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
  echo "make gpu: $python's torch sees no GPU here; DRY=1 shows how far it goes without one" >&2
  exit 2
fi
# An empty build of another machine or commit is rebuilt in seconds.
[ "$stage" = build ] || [ -n "$dry" ] || build
case $stage in
  build) build ;;
  test) run_tests ;;
  sanitize) sanitize ;;
  bench) bench ;;
  *) echo "make gpu: STAGE must be build, test, sanitize or bench, got \"$stage\"" >&2; exit 2 ;;
esac
echo "make gpu: $stage took $SECONDS s"
