# Everything here works on a bare machine with Python >= 3.10 (with venv), make and git.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-browser check bench clean

help:  ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

# The environment is whole when the stamp is there; a changed pyproject.toml brings it up to date.
.venv/.ready: pyproject.toml
	@command -v git >/dev/null || { echo "git is missing: install it and try again" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: install Python 3.10 or later, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than Python 3.10: install a later one, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv: install it (on Debian: the package python3-venv)" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing ddclip and what it needs into .venv (once; some minutes and 6 GB, most of it PyTorch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: .venv/.ready  ## make, train, evaluate and search a small 3D library (about 3 minutes)
	@$(BIN)/ddclip demo --out demo --force

test: .venv/.ready  ## run the tests
	@$(BIN)/python -m pytest

test-slow: .venv/.ready  ## run the slow tests: long kills, the whole demo, the wheel
	@$(BIN)/python -m pytest -m slow

test-browser: .venv/.ready  ## click the gallery in headless Chromium (on Debian: apt-get install chromium)
	@$(BIN)/python -m pytest -m browser

check: .venv/.ready  ## lint and check types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/.ready  ## print the benchmarks
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove what the demo and the builds made; .venv stays
	@rm -rf demo build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
