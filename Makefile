# make setup demo test lint types layers check bench - `make check` is what CI runs
PYTHON ?= python3
VENV := .venv
LLAMAFACTORY_VENV := .venv-llamafactory
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup llamafactory-env demo test lint types layers check bench clean

setup: $(VENV)/.ready

# torch first and pinned: anything else would pull it in with the CUDA of the day
$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[train,dev]"
	touch $@

llamafactory-env: $(LLAMAFACTORY_VENV)/.ready

# what the exports are tested in: LLaMA-Factory on a CPU, apart from the driver's own environment
LLAMAFACTORY_FILES := scripts/llamafactory-env.sh scripts/llamafactory-constraints.txt scripts/llamafactory_cpu_shims.py
$(LLAMAFACTORY_VENV)/.ready: $(LLAMAFACTORY_FILES)
	PYTHON=$(PYTHON) scripts/llamafactory-env.sh $(LLAMAFACTORY_VENV)
	touch $@

test: setup llamafactory-env
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

check: lint types layers test
