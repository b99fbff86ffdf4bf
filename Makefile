# setup: .venv from requirements.lock · node: programs of the tests · demo · test · test-all · chaos · lint · bench · sheets · lock
# deploy-local: server, pool, worker and all deployments on this machine · deploy-test: the same under faults
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.9

.PHONY: setup node demo test test-all chaos deploy-local deploy-test lint format bench sheets lock clean

setup: $(VENV)/.ready

# One stamp: the environment is rebuilt when the lock, the project file or this file changes.
$(VENV)/.ready: requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deca-pipeline needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@# Compiled once here; else every process of Ray compiles torch anew wherever PYTHONDONTWRITEBYTECODE is set.
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Azurite, an Azure storage endpoint that tests talk to. Without npm those tests skip.
node:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory tests/node_modules/.ready; \
	 else echo "npm is not installed: the tests that need Azurite will skip"; fi

tests/node_modules/.ready: tests/package.json
	npm install --prefix tests --no-package-lock --no-fund --no-audit --loglevel error
	@touch $@

demo: setup
	$(BIN)/deca demo demo-output

# Two workers, a core each; tests/conftest.py groups the modules. With more threads they would wait for one another at
# every barrier; without the second variable Ray would run its processes at a lower priority.
PYTEST = OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
         --durations=10

# About 8 minutes on two cores: what changes break most often.
test: setup node
	$(PYTEST) -m "not slow"

# Everything, before a change is merged.
test-all: setup node
	$(PYTEST)

# At least 100 faults over ingest, train and reconstruct, and erasures killed at every step: docs/chaos.md
chaos: setup
	$(BIN)/python -m tests.chaos --markdown docs/chaos-table.md
	$(BIN)/python -m tests.chaos.erasures

deploy-local: setup
	$(BIN)/python -m pipelines.deploy_local

deploy-test: setup
	$(BIN)/python -m tests.deploy.trial

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One table; keep its figures for the next time: make bench BENCH="--json new.json --compare old.json"
BENCH ?=
bench: setup
	$(BIN)/python -m benchmarks.suite $(BENCH)

# The contact sheets of docs/world.md.
sheets: setup
	$(BIN)/python -m tools.sheets docs/world

# Names, versions and hashes only. Run it after changing dependencies in pyproject.toml.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) tests/node_modules demo-output build dist *.egg-info
