# setup: .venv from requirements.lock · demo · test · lint · bench · sheets · lock
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.13.9

.PHONY: setup demo test lint format bench sheets lock clean

setup: $(VENV)/.ready

# One stamp: the environment is rebuilt when the lock, the project file or this file changes.
$(VENV)/.ready: requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deca-pipeline needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/deca demo demo-output

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.head
	$(BIN)/python -m benchmarks.world --quick

# The contact sheets of docs/world.md.
sheets: setup
	$(BIN)/python -m benchmarks.sheets docs/world

# Names, versions and hashes only. Run it after changing dependencies in pyproject.toml.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info
