# demo: watch a cascade answer.  test: every test.  check: lint, format and types.  format: fix both.  bench: measure.  acceptance: real clients.
#
# The first target on a bare machine makes .venv and installs into it (minutes: torch and ray are large); the stamp file
# below makes every later run start at once. Needs make and any Python from 3.11 on; PYTHON=... chooses one.

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench acceptance clean
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
BENCHMARKS := steps breakdown channels events_throughput cascade prefix lookup rivals:--quick systems:--quick seeing:--quick heads:--quick acceptance:--scenes=2 throughput:--rounds=2 serve_overhead:--quick edge:--seconds=2 policy:--quick ablations simulator:--pipespec pipeline:--quick gpu.steps
STAMP := $(VENV)/.installed
TOOLS := build/acceptance
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14
NEW_ENOUGH := import sys, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

help:
	@sed -n '1p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later with ensurepip was found; try make PYTHON=/path/to/python"; exit 1; }
	@echo "== making $(VENV) with $(PYTHON) and installing (once; torch and ray are several hundred MB)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,events,dsec,video]' -c constraints.txt
	@touch $@

demo: $(STAMP)
	$(BIN)/cascade demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	@for line in $(BENCHMARKS); do \
		echo "== $$line"; OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$(echo $$line | tr : ' ') || exit 1; done

# openai, litellm, langchain, schemathesis, locust and playwright (which drives the chromium that is installed), in a
# venv of their own; GUIDELLM=1 adds gigabytes of its own torch. Without npm the JavaScript client is left out.
acceptance: $(STAMP)
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q -r tests/acceptance/requirements.txt $(if $(GUIDELLM),-r tests/acceptance/requirements-guidellm.txt)
	$(BIN)/python -m pip install -q playwright==1.65.2 openai==3.57.0 kubernetes-validate==1.37.0 -c constraints.txt
	cp tests/acceptance/package*.json $(TOOLS)/ && { ! command -v npm >/dev/null || npm ci --prefix $(TOOLS); }
	CASCADE_ACCEPTANCE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/acceptance -s

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
