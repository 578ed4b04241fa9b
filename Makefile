# `make demo` and `make test` each create the environment they need; a second call reuses it at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The GPU build of vLLM where the driver answers, the CPU build elsewhere. Override with `make BUILD=cpu`.
BUILD ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.ready-$(BUILD)
# Where `make lock` finds the CPU build of torch. Behind a mirror: `make lock PYTORCH="--index https://..."`.
PYTORCH ?= --torch-backend cpu
PYTEST := $(BIN)/python -m pytest
# Test files that run concurrently: the slow ones mostly wait, and take up to 6 GiB each.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

# Every stage starts several Python processes that import gigabytes: each compiles them again if Python may not cache its
# bytecode (containers often set this), and takes twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup lock demo demo-open check format test test-fast test-long bench bench-scale bench-gpu gpu-wheels clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Create .venv with all dependencies (CPU or GPU build)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml $(wildcard locks/*) | $(BIN)/python
	@echo "Setting up $(VENV) ($(BUILD) build); this takes a minute or two once."
	@rm -f $(VENV)/.ready-*
	$(BIN)/python locks/install.py $(BUILD) --develop
	@touch $@

COMPILE = UV_INDEX= UV_FIND_LINKS= $(BIN)/python locks/uv.py pip compile $(if $(UPGRADE),--upgrade) \
	--quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
lock: | $(BIN)/python ## Pin the dependencies of pyproject.toml in locks/ (UPGRADE=1: upgrade all)
	$(COMPILE) pyproject.toml --extra cpu --excludes locks/excluded.txt $(PYTORCH) --output-file locks/cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --output-file locks/gpu.txt
	$(COMPILE) --group dev --constraint locks/cpu.txt --constraint locks/gpu.txt --output-file locks/dev.txt

demo: $(STAMP) ## Run a fusion of tiny models, from corpus to an answer of the served model
	$(BIN)/profuser demo

# Folders in place of the Hub: MODELS with smollm2, qwen and gemma, DATA with the three corpora.
SOURCES := smollm2 qwen gemma
OPEN = $(if $(MODELS),$(foreach name,$(SOURCES),--set sources.$(name).model=$(MODELS)/$(name) --set sources.$(name).revision=null) \
	--set target.model=$(MODELS)/smollm2 --set target.revision=null) \
	$(if $(DATA),--set corpus.parts.math.path=$(DATA)/gsm8k_train.jsonl --set corpus.parts.general.path=$(DATA)/alpaca_5000.json \
	--set corpus.parts.code.path=$(DATA)/code_alpaca_2k.json)
demo-open: $(STAMP) ## Fuse three released models, from corpus to an answer (35 minutes on two cores; MODELS=, DATA=: folders instead of the Hub; OPTIONS=)
	$(BIN)/profuser demo open-trio-demo $(OPEN) $(OPTIONS)

check: $(STAMP) ## Check lint, formatting, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(STAMP) ## Format, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-fast: $(STAMP) ## Run the default tests: no Ray, no vLLM
	$(PYTEST) $(SIDE_BY_SIDE) -m "not ray and not vllm and not slow and not long and not gpu"

test: test-fast ## Run all tests that this machine can run, the fast ones first
	$(PYTEST) $(SIDE_BY_SIDE) -m "(ray or vllm or slow) and not long and not gpu"

test-long: $(STAMP) ## Run what `make test` leaves out: a full rebuild of the laboratory, a fusion with kills (about half an hour)
	$(PYTEST) -m long

bench: $(STAMP) ## Run the benchmarks, all in one process
	$(BIN)/python -m tests.benchmarks

bench-scale: $(STAMP) ## Measure time and memory over 100,000 and 1,000,000 synthetic rows, separately (about forty minutes)
	$(BIN)/python -m tests.benchmarks scale

bench-gpu: ## Run the benchmarks of one GPU (at most eight minutes); needs only PyTorch and `make gpu-wheels`, no .venv or network
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.benchmarks gpu

gpu-wheels: $(STAMP) ## Download to .gpu-wheels what a bare GPU machine lacks for bench-gpu
	$(BIN)/python -m tests.benchmarks.gpu.wheels

clean: ## Delete what was built
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
