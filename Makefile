# Needs Python 3.11 or newer and make; everything else goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
NEWEST ?= $(shell command -v python3.13 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
CODE := scgmvae tests benchmarks examples tutorials docs conftest.py

# No window opens, with or without a display.
export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help environment demo tutorials docs tables build test test-benchmarks coverage test-newest test-lowest audit soak figures lint \
	format constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

environment: $(VENV)/.installed-test $(VENV)/.installed-docs ## install everything into .venv

demo: $(VENV)/.installed ## run the demonstration, results in demo_output/
	$(BIN)/python examples/demo.py demo_output

# Two notebooks at a time, of one thread each: two threads wait for each other most of the time. Options of
# the tests are left out, because they belong to plugins that notebooks do without.
tutorials: $(VENV)/.installed-tutorials ## run the notebooks in tutorials/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts= -n 2 --nbmake --nbmake-timeout=600 \
		--durations=0 tutorials

docs: $(VENV)/.installed-docs ## build the documentation, with the notebooks run, in docs/_build/html
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going $(SPHINXOPTS) docs docs/_build/html

tables: $(VENV)/.installed ## renew the figures in README and documentation from benchmarks/results/
	$(BIN)/python benchmarks/page.py
	$(BIN)/python benchmarks/tables.py

# The README's first block runs in an environment that has nothing but the wheel and what it asks for.
build: $(VENV)/.installed-release ## build wheel and sdist in dist/, and try the wheel
	rm -rf dist build/env
	$(BIN)/python -m build
	$(PYTHON) -m venv build/env
	build/env/bin/python -m pip install --progress-bar off --quiet -c constraints.txt dist/*.whl
	sed -n '/^```python/,/^```$$/p' README.md | sed '1d;/^```$$/,$$d' > build/first_block.py
	cd build && env/bin/python first_block.py

# Two processes of one thread each are faster than one of two: the tensors are small.
test: lint ## lint, then all tests and doctests but those of the benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		--ignore-glob='tests/test_benchmarks*'

test-benchmarks: $(VENV)/.installed-test ## run the short form of every benchmark
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/test_benchmarks*.py

coverage: $(VENV)/.installed-test ## the lines of scgmvae/ that no test runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov=scgmvae \
		--cov-report=term-missing:skip-covered --ignore-glob='tests/test_benchmarks*'

# Warnings are let through in both: old packages warn of what newer ones have changed, and new ones of
# what others have not followed yet. On Linux torch brings gigabytes of CUDA with it.
test-newest: ## all tests with the newest versions of everything, on the newest Python that is there
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --progress-bar off --quiet -e '.[test]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest -n 2 --dist loadfile -W default

test-lowest: ## all tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv-lowest .venv-lowest/bin/uv pip install --resolution lowest-direct -e '.[test]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest -n 2 --dist loadfile -W default

# Asks the Python Package Index, so it is no part of the tests.
audit: ## look for known vulnerabilities in what constraints.txt pins
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

# Five minutes on one core.
soak: $(VENV)/.installed ## random settings and faults put in: what survives, as a table
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

figures: $(VENV)/.installed-test ## make anew the figures that tests compare with, to be looked at
	$(BIN)/python -m pytest tests/plotting/test_figures.py --mpl-generate-path=tests/plotting/figures

lint: $(VENV)/.installed-test ## check style, formatting and types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.installed-test ## mend style and formatting
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# torch is held, because its builds differ per platform; the rest is resolved anew.
constraints: ## resolve constraints.txt anew from pyproject.toml
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	grep '^torch==' constraints.txt > $(VENV)/torch.txt
	$(PIP) install --progress-bar off -c $(VENV)/torch.txt -e '.[test,tutorials,docs,release]'
	sed -n '/^#/p' constraints.txt > $(VENV)/constraints.txt
	$(PIP) list --format freeze --exclude pip --exclude scgmvae \
		| sed 's/+.*//' >> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	touch $(VENV)/.installed $(addprefix $(VENV)/.installed-,test tutorials docs release)

clean: ## remove the environment, caches and results
	rm -rf $(VENV) .venv-* build dist demo_output docs/_build docs/api/generated \
		.pytest_cache .ruff_cache .mypy_cache
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

# The stamps are renewed whenever the requirements change; pip then moves what differs.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/.installed-tutorials: $(VENV)/.installed
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e '.[tutorials]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-tutorials
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e '.[docs]'
	touch $@

$(VENV)/.installed-release: $(VENV)/.installed
	$(PIP) install --progress-bar off --quiet -c constraints.txt -e '.[release]'
	touch $@

# pip is the last thing venv writes: where it is missing, the environment is unfinished.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
