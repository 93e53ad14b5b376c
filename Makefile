# Two commands matter: `make run` and `make test`. The rest are parts of them, or for whoever works on the gateway.
PYTHON ?= python3
CONFIG ?= config/gateway.yaml
# What goes to pytest. A worker a core: tests share no port, no directory and no clock.
TESTS ?= -n auto

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet
AGAIN := $(MAKE) --no-print-directory --silent

# Whether .venv can be used: of a Python that is new enough, made in this very place, and with a pip.
SOUND := import os, pip, sys; sys.exit(sys.version_info < (3, 11) or os.path.realpath(sys.prefix) != os.path.realpath(".venv"))

.PHONY: run test chaos check alerts bench bench-paid-once bench-quick install install-dev environment lock clean

run: install
	@exec $(BIN)/python -m gateway serve --config $(CONFIG)

test: install-dev
	@$(BIN)/python -m pytest $(TESTS)

# Storms over a gateway of several processes, for CHAOS_MINUTES (5), from CHAOS_SEED (1) on: docs/chaos.md.
chaos: install-dev
	@$(BIN)/python -m tests.chaos.long

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Needs promtool, which comes with Prometheus; nothing else here does.
alerts:
	promtool check rules config/prometheus/alerts.yml
	promtool check config config/prometheus/prometheus.yml

# Our gateway beside nginx, Varnish and LiteLLM, as far as they are installed: bench/paid_once/install-peers does that.
# BENCH=--full takes the real lengths. See docs/benchmarks.md.
bench-paid-once: install
	@exec $(BIN)/python -m bench.paid_once $(BENCH)

# How fast everything is, beside nginx, Varnish and LiteLLM as far as they are installed: writes bench/RESULTS.md and bench/plots.
# About twelve minutes. Wants wrk and a C compiler, and root for a network of its own; names what it has not got. See docs/benchmarks.md.
bench: install
	@exec $(BIN)/python -m bench.speed $(BENCH)

# Whether a hit costs what it did, in under two minutes: informational, nothing fails.
bench-quick: install
	@exec $(BIN)/python -m bench.speed --quick $(BENCH)

install: environment
	@$(AGAIN) .venv/installed

install-dev: environment
	@$(AGAIN) .venv/installed-dev

# An environment of an older Python, one that was moved or copied here, and one whose installation was cut short are
# made anew: what is half there is not mended.
environment:
	@if [ -e .venv ] && { [ -e .venv/unfinished ] || ! $(BIN)/python -c '$(SOUND)' 2>/dev/null || \
		! grep -qF ' $(CURDIR)/.venv' .venv/pyvenv.cfg; }; then \
		echo ".venv is unfinished or not from here: making it anew."; rm -rf .venv; fi
	@[ -e .venv ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@[ -e .venv ] || $(PYTHON) -m venv "$(CURDIR)/.venv" || \
		{ rm -rf .venv; echo "No virtual environment could be made; on Debian, install python3-venv."; exit 1; }

.venv/installed: requirements.lock pyproject.toml
	@echo "Installing what requirements.lock pins into .venv ..."
	@touch .venv/unfinished
	$(PIP) --require-hashes --only-binary :all: -r requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@rm .venv/unfinished && touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	@echo "Installing what requirements-dev.lock pins into .venv ..."
	@touch .venv/unfinished
	$(PIP) --require-hashes --only-binary :all: -r requirements-dev.lock
	@rm .venv/unfinished && touch $@

# Pins every dependency with its hashes, and without any address. Needs uv on the PATH.
lock:
	uv lock --quiet
	uv export --quiet --frozen --group build --no-emit-project --output-file requirements.lock
	uv export --quiet --frozen --group build --group dev --no-emit-project --output-file requirements-dev.lock
	rm uv.lock

# What can be made again. var/ has the ledger: it is never removed here.
clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
