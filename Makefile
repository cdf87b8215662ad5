# One command each; every target sets up what it needs. PYTHON is any Python 3.11.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ROOMS := shared edge cloud training
export TOPROPE_HOME ?= $(CURDIR)/.toprope

.PHONY: run test test-faults fuzz test-peers bench lint lock setup

run: $(READY)
	$(BIN)/python deploy/local/run.py $(if $(ONCE),--once) $(if $(RETRAIN),--retrain)

# Two processes, so that it ends in some minutes on two cores.
test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# What docs/reference-benchmarks.md quotes: measured, then written there. QUICK=1 shows only that it runs; ONLY="window deltas"
# measures some.
bench: $(READY)
	$(BIN)/python -m tests.benchmarks.push $(if $(QUICK),--quick) $(ONLY)
	$(if $(ONLY),,$(BIN)/python -m tests.benchmarks.edge $(if $(QUICK),--quick))
	$(if $(ONLY),,$(BIN)/python -m tests.benchmarks.serving $(if $(QUICK),--quick))
	$(if $(QUICK),,$(BIN)/python -m tests.benchmarks.page)

# Every seed of the faults: kills, cuts, delays, full disks; `make test` runs some of each.
test-faults: $(READY)
	TOPROPE_FAULTS=all $(BIN)/python -m pytest tests/faults --timeout 900

# Every parser of bytes from outside under atheris, SECONDS each; ONLY="golden messages." takes some. Findings: .build/fuzz/.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS),20) $(ONLY)

# Other people's clients, suites and models against us; what they need is fetched once into .cache/. Ends with a table of counts.
test-peers: $(READY)
	TOPROPE_PEERS=all $(BIN)/python -m pytest tests/conformance tests/peers

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The lock names hashes and no registry; uv is installed beside, it is not part of the environment.
lock:
	@test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv; }
	.venv-lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--quiet -c requirements/constraints.txt $(ROOMS:%=--no-emit-package toprope-%) \
		requirements/dev.in -o requirements/dev.txt

setup: $(READY)

$(READY): requirements/dev.txt $(ROOMS:%=%/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] == (3, 11) else f"toprope is developed on Python 3.11, and {sys.executable} is {sys.version.split()[0]}; run: make PYTHON=/path/to/python3.11 ...")'
	@echo "Setting up $(VENV): about 100 packages and 2.4 GB, once; a minute or two."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(ROOMS:%=-e ./%)
	@touch $@
