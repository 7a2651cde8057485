# Everything a newcomer needs. `make demo` and `make test` install by themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: install check test test-all coverage test-service demo simulate simulate-slice promises clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      a real network of six daemons on this machine, from install to shutdown"
	@echo "make test      every test but the slow ones; make test-all the slow ones too"
	@echo "make coverage  branches of protocol/ and consensus/ that their tests take: fails under 95 %"
	@echo "make simulate-slice   40 simulated lives of the chain under faults; make simulate lives 2,020 of an hour each"
	@echo "make test-service  moed under a real systemd, booted in a machine of its own; as root"
	@echo "make check     format, lint, types and import arrows"
	@echo "make promises  the table of what moed promises, with the test that shows it"
	@echo "make install   the environment in .venv alone"
	@echo "make clean     removes .venv, .devnet and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "moed needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-cache

# side by side, a file at a time, on as many cores as there are up to four; then what wants the machine for itself
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile

test: install
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(BIN)/python -m pytest -q -m "alone and not slow" tests/promises

test-all: install
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not alone"
	$(BIN)/python -m pytest -q -m alone tests/promises

coverage: install
	$(BIN)/coverage run --data-file=$(VENV)/.coverage -m pytest -q tests/protocol tests/consensus
	$(BIN)/coverage report --data-file=$(VENV)/.coverage --include='*/protocol/*' --fail-under=95
	$(BIN)/coverage report --data-file=$(VENV)/.coverage --include='*/consensus/*' --fail-under=95

# the seeds of the slice are others than those of the tests, which live through the first ones
simulate-slice: install
	$(BIN)/moed simulate --seed 100 --seeds 30 --hours 0.25 --nodes 4
	$(BIN)/moed simulate --seed 100 --seeds 10 --hours 0.15 --nodes 7

simulate: install
	$(BIN)/moed simulate --seeds 1000 --nodes 4
	$(BIN)/moed simulate --seeds 1000 --nodes 7
	$(BIN)/moed simulate --seed 5000 --seeds 20 --nodes 4 --interval-ms 1000

test-service: install
	MOED_TEST_SERVICE=1 $(BIN)/python -m pytest -q tests/service

demo: install
	$(BIN)/moed devnet run --validators 2 --miners 4 --epochs 3 $(if $(JSON),--json $(JSON))

promises: install
	$(BIN)/python tests/promises --write docs/promises.md

clean:
	rm -rf $(VENV) .devnet .mypy_cache .pytest_cache .ruff_cache src/moed.egg-info build dist
