# make run: a server with a demo model on 127.0.0.1:8000; it brings its own PostgreSQL unless DATABASE_URL is set.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
ROWS ?= 2000
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --quiet --disable-pip-version-check
# Debian's PostgreSQL 15, the oldest supported version, for test-system, which also needs what .ci/run installs.
POSTGRES_15 ?= /usr/lib/postgresql/15/bin
# The tests run in two processes, each with its own PostgreSQL; on a single core, in one. Never in more than two: some
# tests measure time, and they are known to pass beside one other process. `make test WORKERS=` runs one process.
WORKERS ?= --numprocesses logical --maxprocesses 2 --dist worksteal

.PHONY: run demo replay test test-system compose-test faults check format dashboards lock

run: $(VENV)/run-installed
	exec $(BIN)/python -m app serve --host $(HOST) --port $(PORT)

# The server with PostgreSQL, Prometheus if it is installed, and an endless stream of rows and labels, until Ctrl-C.
demo: $(VENV)/run-installed
	exec $(BIN)/python demo/run.py --port $(PORT)

replay: $(VENV)/run-installed
	$(BIN)/python -m app replay --url http://$(HOST):$(PORT) --rows $(ROWS)

test: $(VENV)/test-installed
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(WORKERS) tests --ignore=tests/system --ignore=tests/faults
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

test-system: $(VENV)/test-installed
	$(BIN)/pytest tests/system
	TEST_POSTGRES_BIN=$(POSTGRES_15) $(BIN)/pytest $(WORKERS) tests --ignore=tests/system --ignore=tests/faults
	$(BIN)/pytest tests/faults

# Start and test the stack of compose.yaml, with the images that the Docker engine has or can pull.
compose-test: $(VENV)/test-installed
	$(BIN)/python -m tests.compose

# Before a release: run the faults of test-system many times, and the long ones, and print a table.
faults: $(VENV)/test-installed
	$(BIN)/python -m tests.faults

check: $(VENV)/test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Grafana's dashboards, from grafana/*.py.
dashboards: $(VENV)/test-installed
	$(BIN)/python -m grafana.build

# Both lock files, from pyproject.toml, with the newest versions that it allows; `make lock UPGRADE=` keeps versions that
# still fit. Then check, without a download, that every package has a wheel for each supported Python.
UPGRADE ?= --upgrade
COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --no-config --universal --fork-strategy fewest --python-version 3.11 \
	--generate-hashes --no-strip-extras --custom-compile-command 'make lock' --group build $(UPGRADE) pyproject.toml

lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --quiet --disable-pip-version-check install 'uv==0.13.9'
	$(COMPILE) --extra embedded --output-file requirements.lock
	$(COMPILE) --extra test --constraint requirements.lock --output-file requirements-test.lock
	for version in 3.11 3.12 3.13; do for lock in requirements.lock requirements-test.lock; do \
		$(VENV)/lock/bin/uv pip install --quiet --no-config --dry-run --target $(VENV)/lock/none --python-version $$version \
			--require-hashes --only-binary :all: --requirement $$lock || exit 1; done; done

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# The versions in the lock files, checked by their hashes; then this package, built with the locked hatchling.
$(VENV)/run-installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	$(PIP) install --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/test-installed: pyproject.toml requirements-test.lock | $(VENV)/bin/python
	$(PIP) install --require-hashes --requirement requirements-test.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@ $(VENV)/run-installed
