# Two commands matter: `make run` and `make test`. The rest are parts of them.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CONFIG ?= config/gateway.yaml

.PHONY: run test check install install-dev lock clean

run: install
	$(BIN)/gateway serve --config $(CONFIG)

test: install-dev
	$(BIN)/python -m pytest

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed
install-dev: .venv/installed-dev

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "No virtual environment could be made; on Debian, install python3-venv."; exit 1; }

.venv/installed: .venv/bin/python requirements.lock pyproject.toml
	$(PIP) --require-hashes --only-binary :all: -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) --require-hashes --only-binary :all: -r requirements-dev.lock
	@touch $@

# Pins every dependency with its hashes, and without any address. Needs uv on the PATH.
lock:
	uv lock --quiet
	uv export --quiet --frozen --group build --no-emit-project --output-file requirements.lock
	uv export --quiet --frozen --group build --group dev --no-emit-project --output-file requirements-dev.lock
	rm uv.lock

clean:
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
