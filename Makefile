# make demo | install | test | test-slow | fidelity | bench | lint | format | clean; each sets up what it needs first.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# errors only: pip warns of each package that one of several indexes lacks
PIP_INSTALL = $(BIN)/python -m pip install -qq --constraint constraints.txt
DEMO := runs/bandwidth_vs_convergence
# of the slow links between the islands
BANDWIDTHS := 10Mbit/s,20Mbit/s,50Mbit/s,100Mbit/s,200Mbit/s,500Mbit/s,1Gbit/s,2Gbit/s,5Gbit/s,10Gbit/s
# two processes for two cores; a file stays together, as its fixtures (a Ray cluster, say) are costly
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# one thread each: several processes share few cores, and sums must not depend on how many there are
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow fidelity fidelity-measure bench lint format clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP) ## make .venv with the pinned packages and simdist (PYTHON=python3.12 chooses the interpreter)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "simdist: got `$(PYTHON) --version 2>&1` as $(PYTHON); expected Python 3.10 to 3.13: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing simdist and its pinned packages in .venv; this takes a few minutes."
	@$(PYTHON) -m venv .venv
	@$(PIP_INSTALL) hatchling editables
	@$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@
	@echo "Installed: $(BIN)/simdist"

demo: $(STAMP) ## train, re-time and draw the main job: bandwidth against convergence
	$(BIN)/simdist sweep scenarios/bandwidth_vs_convergence.py --out $(DEMO)
	$(BIN)/simdist retime $(DEMO) --over network.bandwidth=$(BANDWIDTHS)
	$(BIN)/python analysis/bandwidth_vs_convergence.py $(DEMO) --out $(DEMO)/analysis
	$(BIN)/simdist report $(DEMO)
	@echo "Figures: $(DEMO)/figures; open $(DEMO)/report.html"

test: $(STAMP) ## run the tests (not those marked slow, gpu or root)
	$(PYTEST)

test-slow: $(STAMP) ## run the tests that take minutes
	$(PYTEST) -m slow

fidelity: $(STAMP) ## predict the committed measurements of real links, real steps and SimGrid; print the errors
	$(BIN)/python -m analysis.fidelity

fidelity-measure: $(STAMP) ## the same, but first measure what is missing (root, iproute2, python3-simgrid; 40 minutes for all)
	$(BIN)/python -m analysis.fidelity --measure

bench: $(STAMP) ## measure speed and memory against plain loops and peers (an hour on 2 idle cores; more to install Flower once)
	$(BIN)/python -m analysis.benchmarks --make-flower

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
