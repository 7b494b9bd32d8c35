# discovery-loop: `make run` and `make test` do all of their own set-up, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PIPFLAGS ?= --disable-pip-version-check -qq
CONFIG ?= quickstart
RESULTS ?= results/quickstart
TESTFLAGS ?=
# tests run in so many processes, a file in one: what a file shares (a potential, a server) is made once
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

.PHONY: help setup run test lint docs bench ui down clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed  ## make .venv and install discovery-loop in it

# The stamps carry the time of pyproject.toml and constraints.txt: nothing is set up twice, and a change sets up again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing discovery-loop (some minutes the first time; CPU build of PyTorch and friends) ..."
	@$(PIP) install $(PIPFLAGS) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test extras ..."
	@$(PIP) install $(PIPFLAGS) --constraint constraints.txt --editable '.[test]'
	@touch $@

# SevenNet's packages, for its worker processes alone (some 75 MB): oracles/potentials/overlay.py says which
$(VENV)/.installed-sevennet: oracles/potentials/overlay.py | $(VENV)/.installed
	@echo "installing the potential SevenNet ..."
	@$(BIN)/discovery-loop potential install sevennet
	@touch $@

$(VENV)/bin/python:
	@.ci/make-venv $(VENV)

run: $(VENV)/.installed $(VENV)/.installed-sevennet  ## run the quickstart campaign on the CPU; writes results/quickstart (CONFIG=, RESULTS=)
	@$(BIN)/discovery-loop run $(CONFIG) --results $(RESULTS)

test: $(VENV)/.installed-test $(VENV)/.installed-sevennet  ## run the tests that .ci/run runs (TESTFLAGS="-m slow" for the long ones; JOBS=)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTFLAGS)

lint: $(VENV)/.installed-test  ## style, types and the layers between the packages
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python .ci/tree --check
	@$(BIN)/python .ci/configuration --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@$(BIN)/python .ci/results --check

docs: $(VENV)/.installed-test  ## the documentation as a site in build/site; every warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/.installed  ## how fast the parts are on this machine; writes results/benchmarks/speed
	@$(BIN)/discovery-loop benchmark speed --output results/benchmarks/speed

ui: $(VENV)/.installed  ## Prefect server, work pool, deployments and worker on this machine; prints the address of the UI
	@$(BIN)/discovery-loop up

down: $(VENV)/.installed  ## end what `make ui` started
	@$(BIN)/discovery-loop down

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
