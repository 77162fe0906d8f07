# make demo       set up .venv and run every experiment small, on data that needs no download; five minutes on two cores
# make test       set up .venv and run the whole test suite; eight minutes on two cores
# make test-fast  the same without the tests that kill processes, compile or sample for long
# make results    run what results/ and the committed figures hold and is not finished; many hours on two cores
#                 TABLES=uci: of some tables only; CHECKPOINT=FILE: ResNet20 from the authors' dense checkpoint
# make report     results/report.md and report.html, and the tables of README.md and docs/, from what is finished
# make bench      time the programs against plain loops, results/benchmarks.csv and figures/scaling.png

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/.requirements
DEV := $(VENV)/.requirements-dev

.PHONY: demo test test-fast results report bench lint clean

demo: $(RUN)
	$(VENV)/bin/python reproduce.py run quick -jobs 2

test: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2

test-fast: $(DEV) lint
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

results: $(RUN)
	$(VENV)/bin/python reproduce.py run $(or $(TABLES),all) -protocol cpu $(if $(CHECKPOINT),-checkpoint $(CHECKPOINT))

report: $(RUN)
	$(VENV)/bin/python reproduce.py report

bench: $(RUN)
	$(VENV)/bin/python -m benchmarks
	$(VENV)/bin/python -m figures.scaling figures/scaling.png

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
