# The same commands on a desk and in CI. Each works first on a fresh clone, with nothing there but make and Python 3.11.
#
#   make demo    watch it work                     make bench   the budget table, beside its references and peers
#   make test    the test suite, under 5 minutes   make sim     1,000 seeds of the simulator, under 15 minutes
#   make check   format, lint, types, tidiness     make chaos   real processes, and a nemesis
#                                                  make heavy   the long and large versions of all other tests

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := .venv/bin
# Order and random data of the tests follow from this number: `make test SEED=7`, or `SEED=random` for a new one.
SEED   ?= 1
ARGS   ?=

ifeq ($(SEED),random)
seed_option :=
else
seed_option := --randomly-seed=$(SEED)
endif

.PHONY: demo test check format bench sim heavy chaos mutants install clean
.DEFAULT_GOAL := help

help: ; @sed -n '3,7s/^# \{0,1\}//p' Makefile
.PHONY: help

install: .venv/.ready

# Built beside a stamp, so that an install that was cut short is done again. Wheels only: nothing is compiled.
.venv/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: $(PYTHON) is older than Python 3.11")'
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -c constraints.txt \
		--no-build-isolation -e '.[dev]'
	@touch $@

# The peers that the benchmarks measure beside us. PySyncObj is the one package without a wheel: plain Python.
.venv/.ready-bench: .venv/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-binary pysyncobj \
		-c constraints.txt --no-build-isolation -e '.[dev,bench]'
	@touch $@

demo: .venv/.ready
	@$(BIN)/octopii demo $(ARGS)

test: .venv/.ready
	$(BIN)/python -m pytest -n 3 -m 'not heavy' $(seed_option) $(ARGS)

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -p no:randomly tests/test_tidy.py tests/test_exports.py

format: .venv/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.ready-bench
	$(BIN)/python -m bench $(ARGS)

sim: .venv/.ready
	$(BIN)/octopii sim --profile all --seeds 1000 --jobs 2 $(ARGS)

heavy: .venv/.ready
	$(BIN)/python -m pytest -n 2 -m heavy $(seed_option) --timeout=7200 $(ARGS)

chaos: .venv/.ready
	$(BIN)/python -m tests.chaos $(ARGS)

mutants: .venv/.ready
	$(BIN)/python -m tests.mutants --write docs/mutants.md $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/peers/*/target
