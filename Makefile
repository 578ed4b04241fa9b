# `make demo` and `make test` each create the environment they need; a second call reuses it at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The GPU build of vLLM where the driver answers, the CPU build elsewhere. Override with `make BUILD=cpu`.
BUILD ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
STAMP := $(VENV)/.ready-$(BUILD)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PYTEST := $(BIN)/python -m pytest
# Files of tests that run at one time: the slow ones mostly wait, and take up to 6 GiB each.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo check format test test-fast test-long bench bench-scale bench-gpu gpu-wheels clean

help: ## Say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Create .venv with everything (a CPU or a GPU build)

$(STAMP): pyproject.toml
	@echo "Setting up $(VENV) ($(BUILD) build); this takes a few minutes once."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
ifeq ($(BUILD),cpu)
	$(BIN)/python -m pip install --quiet "torch==2.13.0+cpu" 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet "torch==2.13.0+cpu" --extra-index-url $(TORCH_CPU_INDEX)
endif
	$(BIN)/python -m pip install --quiet --group dev --editable ".[$(BUILD)]"
ifeq ($(BUILD),cpu)
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
endif
	@touch $@

demo: $(STAMP) ## The main job in the laboratory, from corpus to an answer of the served model
	$(BIN)/profuser demo

check: $(STAMP) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

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
