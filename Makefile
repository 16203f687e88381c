# `make quickstart` and `make test` work as the first command in a fresh clone: they make their own environment.
PYTHON ?= python3
VENV := .venv
# set by some containers; every process of the tests would compile all that it imports
unexport PYTHONDONTWRITEBYTECODE
BIN := $(VENV)/bin
CORE := $(VENV)/.installed-core
DEV := $(VENV)/.installed-dev
# pip would compile 18,000 files, of which few are ever imported: half of the time
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: quickstart test quick lint browser bench bench-gpu docs install clean

install: $(CORE)

# a current pip takes half of the time of one that came with Python
$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[plots]'
	touch $@

$(DEV): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable '.[dev]'
	touch $(CORE) $@

quickstart: $(CORE) ## train, sample and evaluate on real English, in minutes on a CPU
	$(BIN)/python examples/quickstart.py

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2 || $(BIN)/mypy # on a busy machine the workers may start too late

test: lint
	$(BIN)/python tests/chromium.py --ci
	$(BIN)/pytest -n 2 --dist worksteal

quick: lint ## linters, types and the tests that take less than a second or two
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

browser: $(DEV) ## Chromium for the tests of the page: Debian's package for root, else Playwright's download
	$(BIN)/python tests/chromium.py

BENCH := $(BIN)/python benchmarks
bench: $(DEV) ## all tables of docs/performance-tables.md, one after the other: two hours on an idle CPU
	$(BENCH)/startup.py
	$(BENCH)/data.py
	$(BENCH)/head.py --rounds 3
	$(BENCH)/step.py --rounds 3
	$(BENCH)/step.py --memory
	$(BENCH)/sampling.py --rounds 2
	$(BENCH)/growth.py
	$(BENCH)/plan.py

bench-gpu: $(CORE) ## the same questions on one GPU, in minutes
	$(BENCH)/gpu.py --shape small
	$(BENCH)/gpu.py --shape 1b --batch 4

docs: $(CORE) ## the documentation as a site in build/site
	$(PIP) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist src/*.egg-info
