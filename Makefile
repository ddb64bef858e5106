# Set-up, demo, tests. `make help` lists the targets.

PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
# Empty files that say what is installed: what a run needs, and what tests, pages and examples need as well.
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
# pip takes torch, whose build its configuration may name, and uv, which takes a tenth of pip's time for the other packages. uv
# does not read pip's configuration, so pip follows where uv finds nothing: behind a mirror, say. Neither compiles: that takes two
# minutes for all modules, and a fifth of them is ever imported.
PIP_INSTALL := $(RUN) -m pip install --no-compile --disable-pip-version-check -c constraints.txt
UV_INSTALL := $(VENV)/bin/uv pip install --python $(RUN) -c constraints.txt
# Importing compiles, once and for all, even where a container's image has this set.
unexport PYTHONDONTWRITEBYTECODE
IMPORT_ALL := import importlib, pkgutil, opdf; \
    [importlib.import_module(m.name) for m in pkgutil.walk_packages(opdf.__path__, "opdf.") if not m.name.endswith("__main__")]

FOR_RUNS := -e '.[distill]'
FOR_ALL := -e '.[distill,export,examples,docs,dev]'
install = $(UV_INSTALL) $(1) 2>&1 | $(SHOW_UV) || { echo "    uv could not; pip tries" >&2; $(PIP_INSTALL) $(1) | $(SHOW_PIP); }

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# One line for every package of a megabyte or more; warnings and errors come through as they are.
SHOW_PIP := sed -unE 's/^ *Downloading (.* MB\)).*/    \1/p; s/^Installing collected packages.*/    unpacking/p'
SHOW_UV := sed -uE '/^ *([+~-] |Downloaded |Built |Building |Prepared |Resolved |Using Python )/d; s/^(Downloading )?(\w)/    \2/'

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Create .venv and install everything (again when pyproject.toml or constraints.txt changed)

$(RUNS): pyproject.toml constraints.txt
	@test -e $@ || $(MAKE) --no-print-directory venv
	@echo "Installing torch"
	@$(PIP_INSTALL) torch uv | $(SHOW_PIP)
	@echo "Installing opdf and what it needs"
	@$(call install,$(FOR_RUNS))
	@echo "Compiling what opdf imports"
	@$(RUN) -c '$(IMPORT_ALL)'
	@touch $@

$(READY): $(RUNS)
	@echo "Installing what tests, pages and examples need"
	@$(call install,$(FOR_ALL))
	@touch $@

# Always from scratch: a half-made environment, or one of another interpreter, is not worth saving.
.PHONY: venv
venv:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer" \
	    "(Debian: apt-get install python3 python3-venv) or name yours: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is" \
	    "$$($(PYTHON) -V), but 3.11 or newer is needed; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot create virtual" \
	    "environments; install its venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv --clear $(VENV)

.PHONY: data
data: $(RUNS) ## Fetch the data and the pretrained model (once, into the cache)
	@echo "Data and model (84 MB are fetched on the first run):"
	@$(RUN) -m opdf.data

.PHONY: demo
demo: data ## Make students of half their teacher's size on real text, and compare them
	@$(VENV)/bin/opdf demo

.PHONY: demo-images
demo-images: data ## The same on images
	@$(VENV)/bin/opdf demo --task images

.PHONY: test
test: $(READY) data ## Run the fast tests
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal

.PHONY: test-slow
test-slow: $(READY) data ## Run the tests that take minutes (an hour in all)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow -n 2 --dist worksteal --timeout 1800

.PHONY: test-device
test-device: $(READY) ## Run the tests on a GPU, or a stand-in for one (needs g++)
	@$(RUN) -m pytest -m device

# The lower bounds of pyproject.toml as pip constraints. Not torch: constraints.txt pins the one that all of this runs on.
LOWER_BOUNDS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
    print(*(line.replace(">=", "==") for line in project["optional-dependencies"]["distill"]), sep="\n")

.PHONY: test-lowest
test-lowest: data ## Run the fast tests with the oldest versions allowed (in .venv-lowest)
	@$(PYTHON) -m venv --clear $(VENV)-lowest
	@$(RUN) -c '$(LOWER_BOUNDS)' > $(VENV)-lowest/constraints.txt
	@$(VENV)-lowest/bin/python -m pip install --disable-pip-version-check -c constraints.txt torch | $(SHOW_PIP)
	@$(VENV)-lowest/bin/python -m pip install --disable-pip-version-check -c constraints.txt \
	    -c $(VENV)-lowest/constraints.txt -e '.[distill,dev]' | $(SHOW_PIP)
	@OMP_NUM_THREADS=1 $(VENV)-lowest/bin/python -m pytest -n 2

.PHONY: lint
lint: $(READY) ## Check style and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

.PHONY: format
format: $(READY) ## Apply ruff's fixes and format
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

.PHONY: docs
docs: $(READY) ## Build the documentation site into site/
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

.PHONY: figures
figures: $(READY) ## Draw the figures of the documentation from the committed results
	@$(RUN) docs/_figures.py

.PHONY: notebook
notebook: $(READY) ## Make the notebook of the text tutorial from its page
	@$(RUN) docs/_notebook.py

.PHONY: bench
bench: $(READY) ## Run the benchmarks (some of them: make bench BENCH="step memory")
	@$(RUN) -m benchmarks $(BENCH)

.PHONY: bundle
bundle: $(READY) data ## Pack all that a GPU node without a network needs, into dist/
	@$(RUN) -m benchmarks.bundle

.PHONY: clean
clean: ## Remove .venv, caches and build leftovers; results stay
	@rm -rf $(VENV) $(VENV)-lowest build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
