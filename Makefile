# make setup demo test lint types layers check bench replay - `make check` is what CI runs
PYTHON ?= python3
VENV := .venv
LLAMAFACTORY_VENV := .venv-llamafactory
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup llamafactory-env demo test lint types layers check bench replay clean

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
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

check: lint types layers test

# the main job on this machine: real trials of a tiny Qwen2.5-VL on the CPU, and what they found as a LLaMA-Factory YAML
DEMO := .demo
AUTOFIT_DEMO := $(BIN)/autofit --db sqlite:///$(DEMO)/autofit.db
demo: setup
	rm -rf $(DEMO)
	$(BIN)/python examples/make_tiny.py $(DEMO)
	$(AUTOFIT_DEMO) search --space tiny_qwen2_5_vl --model $(DEMO)/tiny-qwen2.5-vl --dataset $(DEMO)/data/tiny_vl.json \
	    --device cpu --gpu-mem 220MB --trials 14 --study demo --runs $(DEMO)/runs
	$(AUTOFIT_DEMO) export --study demo --launcher llamafactory -o $(DEMO)/best

# figures that tests do not assert: start-up and queries over 100,000 trials, what measuring costs a trial, search strategies
bench: setup
	$(BIN)/python benchmarks/startup.py
	test -e $(DEMO)/autofit.db || $(MAKE) demo
	$(BIN)/python benchmarks/trial_fidelity.py
	$(MAKE) replay

# search strategies on recorded tables, 100 searches each: takes a good hour on two cores, most of it the rivals'
replay: setup
	$(BIN)/python -m benchmarks.replay.run

clean:
	rm -rf $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
