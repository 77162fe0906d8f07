# make demo       set up .venv and reproduce the first experiment
# make test       set up .venv and run the whole test suite
# make test-fast  the same without the tests that kill processes, compile or sample for long
# make bench      time the programs against plain loops, results/benchmarks.csv

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/.requirements
DEV := $(VENV)/.requirements-dev

.PHONY: demo test test-fast bench lint clean

demo: $(RUN)
	$(VENV)/bin/python lr_simulation.py -resume 1

test: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2

test-fast: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

bench: $(RUN)
	$(VENV)/bin/python -m benchmarks.lr_simulation
	$(VENV)/bin/python -m benchmarks.uci

lint: $(DEV)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(RUN): requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -q -r requirements.txt
	touch $@

$(DEV): requirements-dev.txt $(RUN)
	$(VENV)/bin/python -m pip install -q -r requirements-dev.txt
	touch $@
