#!/usr/bin/env bash
# `make gpu DRY=1`: scripts/gpu.sh on the CPU, with as little at hand as where it has to work: no git, make or compiler on
# the PATH, no pytorch-metric-learning, and no network where this user may cut it off.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/gpu-dry
rm -rf "$work"
mkdir -p "$work/bin" "$work/carried"

for tool in bash cp dirname env find mkdir nproc rm tar uname wc xz; do
  ln -s "$(command -v "$tool")" "$work/bin"
done
.venv/bin/python -m venv --without-pip "$work/python"
packages=$(echo "$work"/python/lib/python3*/site-packages)
.venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
  >"$packages/base.pth"
echo 'import sys; sys.modules["pytorch_metric_learning"] = None' >"$packages/lacks.pth"

# The wheel of `make wheel` if there is one for this Python; else one without CUDA.
tag=$(.venv/bin/python -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
if compgen -G "wheelhouse/dmlkernels-*-$tag-*.whl" >/dev/null; then
  cp wheelhouse/dmlkernels-*-"$tag"-*.whl "$work/carried"
else
  DMLKERNELS_CUDA=off .venv/bin/python -m pip wheel . --quiet --no-build-isolation --no-deps -w "$work/carried"
fi
echo '{"commit": "a dry run"}' >"$work/carried/built.json"

alone=()
if unshare -n true 2>/dev/null; then alone=(unshare -n); else echo "make gpu DRY=1: this user cannot cut off the network"; fi
exec "${alone[@]}" env -i PATH="$work/bin" HOME="$work" DRY=1 LIMIT="${LIMIT:-60}" OUT="$work" \
  PYTHON="$work/python/bin/python" CARRIED=build/gpu-dry/carried "$(command -v bash)" scripts/gpu.sh "$@"
