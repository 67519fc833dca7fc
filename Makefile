# Every target does its own set-up: it needs python3 (3.10 or newer), make, and a way to the package index.
# The environment is made once in .venv; later runs start at once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS   ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
CODE   := src tests benchmarks scripts docs
PROMPT ?= a red house under a yellow sun

# Handed over through the environment, so that quotes and apostrophes in a prompt stay what they are.
export PROMPT

.DEFAULT_GOAL := help
.PHONY: help generate test parity style quality bench docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c "import sys; assert sys.version_info >= (3, 10), 'Langevin needs Python 3.10 or newer'"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 cannot make an environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# One stamp for each set of packages: what a user needs, what the tests, a developer and the benchmarks need.
$(VENV)/.installed-torch: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Langevin into $(VENV); the first time takes a few minutes."
	@$(PIP) -e ".[torch]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-torch
	@$(PIP) -e ".[test]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	@$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	@$(PIP) -e ".[bench]"
	@touch $@

generate: $(VENV)/.installed-torch  ## draw PROMPT="..." with the shipped model; ARGS="--seed 3 --steps 50" passes options on
	@$(BIN)/langevin generate "$$PROMPT" $(ARGS)

test: $(VENV)/.installed-test  ## run the whole suite, parity with diffusers included; ARGS="-k euler" passes options on
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist=loadfile -q $(ARGS) tests

parity: $(VENV)/.installed-test  ## run only the comparisons with diffusers, over all combinations of schedulers' options
	@OMP_NUM_THREADS=1 LANGEVIN_PARITY_EVERY=1 $(BIN)/python -m pytest -n $(JOBS) --dist=loadfile -q -m parity $(ARGS) tests

style: $(VENV)/.installed-dev  ## rewrite the code in the house style
	@$(BIN)/ruff check --fix $(CODE)

quality: $(VENV)/.installed-dev  ## check style and types; changes nothing
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy

bench: $(VENV)/.installed-bench  ## measure side by side with diffusers; ARGS="--only import" picks one row
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.installed-torch  ## write docs/reference.md: every public class and every argument
	@$(BIN)/python docs/reference.py

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
