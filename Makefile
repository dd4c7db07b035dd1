# make setup demo test lint types layers check browser serve bench replay - `make check` is what CI runs
PYTHON ?= python3
VENV := .venv
LLAMAFACTORY_VENV := .venv-llamafactory
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup llamafactory-env browser demo serve test lint types layers check bench replay gpu-bundle gpu-evidence clean

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

# what the tests of the pages drive; without it they are skipped and say so
browser:
	command -v chromium chromium-browser google-chrome || { apt-get update && apt-get install -y --no-install-recommends chromium; }

# the service over ./autofit.db, on this machine only: http://127.0.0.1:8080
serve: setup
	$(BIN)/autofit serve --root .

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

# figures that tests do not assert: start-up, queries and readers over 100,000 trials, and what measuring costs a trial
bench: setup
	$(BIN)/python benchmarks/startup.py
	test -e $(DEMO)/autofit.db || $(MAKE) demo
	$(BIN)/python benchmarks/trial_fidelity.py
	$(BIN)/python benchmarks/service_load.py
	$(MAKE) replay

# search strategies on recorded tables, 100 searches each: half an hour on two cores, most of it the rivals'
replay: setup
	$(BIN)/python -m benchmarks.replay.run

# what a machine with a GPU and no network needs: the project and the wheels that Python 3.12 with torch, transformers, peft and
# accelerate lacks; there: sh install.sh
gpu-bundle: setup
	$(BIN)/python -m benchmarks.gpu.bundle

# evidence from a GPU, in parts of at most 8 minutes; what is recorded is not run again. PART=accuracy runs one part, DEVICE=cpu
# rehearses with tiny models. Status 3: the time was over first, call it again.
DEVICE ?= cuda
gpu-evidence: $(if $(wildcard $(BIN)/python),,setup)
	$(BIN)/python -m benchmarks.gpu.evidence --device $(DEVICE) $(addprefix --part ,$(PART)) $(if $(RECORDS),--records $(RECORDS))

clean:
	rm -rf $(DEMO) .gpu-evidence .gpu-bundle build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
