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
# Files of tests that run at one time: the slow ones mostly wait, and take up to 6 GiB each.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10

# Every stage starts several Python processes that import gigabytes: each compiles them anew where Python may not keep what
# it compiled (containers often say so), and takes twice as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup lock demo check format test test-fast test-long bench bench-scale bench-gpu gpu-wheels clean

help: ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Create .venv with everything (a CPU or a GPU build)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml $(wildcard locks/*) | $(BIN)/python
	@echo "Setting up $(VENV) ($(BUILD) build); this takes a minute or two once."
	@rm -f $(VENV)/.ready-*
	$(BIN)/python locks/install.py $(BUILD) --develop
	@touch $@

COMPILE = UV_INDEX= UV_FIND_LINKS= $(BIN)/python locks/uv.py pip compile $(if $(UPGRADE),--upgrade) \
	--quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
lock: | $(BIN)/python ## Pin in locks/ what pyproject.toml wants (UPGRADE=1: newer versions of all)
	$(COMPILE) pyproject.toml --extra cpu --excludes locks/excluded.txt $(PYTORCH) --output-file locks/cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --output-file locks/gpu.txt
	$(COMPILE) --group dev --constraint locks/cpu.txt --constraint locks/gpu.txt --output-file locks/dev.txt

demo: $(STAMP) ## The main job in the laboratory, from corpus to an answer of the served model
	$(BIN)/profuser demo

check: $(STAMP) ## Lint, format, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-fast: $(STAMP) ## The default tests: no Ray, no vLLM
	$(PYTEST) $(SIDE_BY_SIDE) -m "not ray and not vllm and not slow and not long and not gpu"

test: test-fast ## All tests that this machine can run: the fast ones first
	$(PYTEST) $(SIDE_BY_SIDE) -m "(ray or vllm or slow) and not long and not gpu"

test-long: $(STAMP) ## What `make test` leaves out: the whole laboratory built anew, a fusion in chaos (some half an hour)
	$(PYTEST) -m long

bench: $(STAMP) ## The benchmarks, side by side in one run
	$(BIN)/python -m tests.benchmarks

bench-scale: $(STAMP) ## Time and memory over 100,000 and 1,000,000 synthetic rows, apart from the others (some forty minutes)
	$(BIN)/python -m tests.benchmarks scale

bench-gpu: ## The benchmarks of one GPU (eight minutes at most); needs neither .venv nor a network, only PyTorch and `make gpu-wheels`
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.benchmarks gpu

gpu-wheels: $(STAMP) ## Gather what a bare GPU machine lacks for bench-gpu, in .gpu-wheels
	$(BIN)/python -m tests.benchmarks.gpu.wheels

clean: ## Take away what was built
	rm -rf $(VENV) dist .pytest_cache .ruff_cache
