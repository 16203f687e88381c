# `make quickstart` and `make test` work as the first command in a fresh clone: they make their own environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test lint bench bench-gpu docs install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(STAMP) ## train, sample and evaluate on real English, in minutes on a CPU
	$(BIN)/python examples/quickstart.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2

BENCH := $(BIN)/python benchmarks
bench: $(STAMP) ## all tables of docs/performance.md, one after the other: two hours on an idle CPU
	$(BENCH)/startup.py
	$(BENCH)/data.py
	$(BENCH)/head.py --rounds 3
	$(BENCH)/step.py --rounds 3
	$(BENCH)/step.py --memory
	$(BENCH)/sampling.py --rounds 2
	$(BENCH)/growth.py
	$(BENCH)/plan.py

bench-gpu: $(STAMP) ## the same questions on one GPU, in minutes
	$(BENCH)/gpu.py --shape small
	$(BENCH)/gpu.py --shape 1b --batch 4

docs: $(STAMP) ## the documentation as a site in build/site
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist src/*.egg-info
