# Two commands do everything: `make train` and `make test`. Both set up .venv first, if it is missing or out of date.
# DEVICE=gpu takes an environment of its own, .venv-gpu: the two builds of vLLM are the same import package.

PYTHON ?= python3.11
DEVICE ?= cpu
RUN ?= deploy/runs/tiny_cpu.toml
ARGS ?=
VENV := $(if $(filter gpu,$(DEVICE)),.venv-gpu,.venv)
CONSTRAINTS := deploy/constraints/$(DEVICE).txt
TORCH := torch==2.13.0$(if $(filter cpu,$(DEVICE)),+cpu)
TORCH_INDEX := https://download.pytorch.org/whl/$(if $(filter gpu,$(DEVICE)),cu130,cpu)
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up-$(DEVICE)
CODE := records tasks tiny_policy rollout learner reward_service orchestrator deploy tests

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup train test test-gpu mutants soak check-tools check-gpu-machine

ifeq ($(filter cpu gpu,$(DEVICE)),)
$(error DEVICE=$(DEVICE) is neither cpu nor gpu)
endif

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)
	@echo '  e.g. make train ARGS="--out output/mine"'
	@echo '       make train DEVICE=gpu RUN=deploy/runs/qwen2_5_vl_3b_lora.toml'

setup: $(STAMP)  ## Make .venv and install (DEVICE=gpu: .venv-gpu; once, and when pyproject.toml or the pins change)

train: $(STAMP)  ## Train the tiny policy on this CPU: render, GRPO, metrics before and after (RUN=..., ARGS=...)
	$(BIN)/star-r1 train $(RUN) $(ARGS)

test: $(STAMP)  ## Lint, check types, run all tests (ARGS=... goes to pytest)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-gpu:  ## What only a GPU can show, in ten minutes; an error where there is none (not yet run on a GPU)
	@$(MAKE) --no-print-directory DEVICE=gpu setup
	.venv-gpu/bin/pytest --device gpu -v tests/gpu tests/rollout/test_worker.py $(ARGS)

mutants: $(STAMP)  ## Break the learner and the loop in hundreds of ways: does a test notice? (ARGS=FILE; half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(ARGS)

soak: $(STAMP)  ## Kill, stop and break workers a hundred times, and nodes: is anything lost? (ARGS="--seed 2"; an hour)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/faults/nodes.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.soak $(ARGS)

check-tools:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	  echo "$(PYTHON) is not a working Python 3.11 or 3.12. Install Python 3.11 with its venv module," \
	    "or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. Install its venv module (Debian: python3.11-venv)." >&2; exit 1; }
	@command -v g++ >/dev/null || { \
	  echo "There is no C++ compiler (g++), which torch needs. Install one (Debian: apt-get install g++)." >&2; exit 1; }

check-gpu-machine: check-tools
	@$(PYTHON) deploy/check_gpu_machine.py

# torch comes first and by itself: where the package index lacks this build, it is fetched from PyTorch's own.
.venv/.set-up-cpu: pyproject.toml deploy/constraints/cpu.txt deploy/torchvision_cpu.py deploy/torchvision_shim.py
$(STAMP): pyproject.toml $(CONSTRAINTS) | $(if $(filter gpu,$(DEVICE)),check-gpu-machine,check-tools)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) '$(TORCH)' \
	  || $(BIN)/pip install --quiet -c $(CONSTRAINTS) --extra-index-url $(TORCH_INDEX) '$(TORCH)'
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[$(DEVICE),dev]'
	$(if $(filter cpu,$(DEVICE)),$(BIN)/python deploy/torchvision_cpu.py)
	touch $@
