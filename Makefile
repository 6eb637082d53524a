# `make quickstart` and `make test` set up all that they need in .venv; `make setup` does only that part.
# Another interpreter: make setup PYTHON=python3.12

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The first interpreter that runs and is new enough: python3 may be older than another one beside it.
RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p $(RECENT) >/dev/null 2>&1 && { echo $$p; break; }; done)
PROJECTS := pyproject.toml tokenizers/pyproject.toml

.PHONY: setup quickstart test lint

setup: $(VENV)/.developer

# What running needs: a minute. What tests need besides (TFDS, pytest, ruff): another one.
$(VENV)/.base: $(PROJECTS)
	@test -n "$(PYTHON)" && $(PYTHON) $(RECENT) 2>/dev/null || { \
		echo "error: mmgen needs Python 3.11 or later; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: python3-venv)" >&2; exit 2; }
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(PIP) -e ./tokenizers -e .
	@touch $@

$(VENV)/.developer: $(VENV)/.base
	@$(PIP) -e ./tokenizers -e ".[dev]"
	@touch $@

quickstart: $(VENV)/.base
	$(BIN)/mmgen quickstart

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
