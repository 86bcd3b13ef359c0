# Each target sets up what it needs: the first run makes .venv and installs the pinned versions.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
RUN := OMP_NUM_THREADS=1 $(VENV)/bin/python
INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
	--progress-bar off --constraint constraints.txt
ARGS ?=

.PHONY: help demo test check docs files names mutants bench soak release evidence-quick evidence clean

help:
	@echo "make demo            compares AdaScale with fixed scaling rules on a small problem"
	@echo "make test            the tests; some of them: make test ARGS=tests/record"
	@echo "make mutants         faults that the tests must find, 10 minutes; one: make mutants ARGS='--only 3'"
	@echo "make check           format, lint, types, tests: what a change must pass"
	@echo "make docs            builds the site of the documentation into site/, and checks its links"
	@echo "make files           each source file and what it is"
	@echo "make names           writes the lists of public names anew"
	@echo "make bench           every program in benchmarks/, one after the other"
	@echo "make soak            kills, faults and damage, 20 000 steps: about an hour"
	@echo "make evidence-quick  tables from their records, and some runs made again"
	@echo "make evidence        every run anew, against expected.json: hours"
	@echo "make release         builds the package in dist/ and tries it in clean environments"
	@echo "make clean           removes .venv and caches"

demo: $(VENV)/.demo
	@$(RUN) -m largebatch demo

test: $(VENV)/.installed
	@$(RUN) -m pytest -q -n 2 --dist worksteal $(ARGS)

mutants: $(VENV)/.installed
	@$(RUN) tests/mutants.py $(ARGS)

check: $(VENV)/.installed
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
	@$(MAKE) --no-print-directory test

docs: $(VENV)/.installed
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@$(RUN) website/check_links.py site
	@$(RUN) -m pytest -q tests/test_docs.py
	@echo "Open site/index.html"

files: $(VENV)/.installed
	@$(RUN) tests/files.py

names: $(VENV)/.installed
	@$(RUN) tests/public_names.py
	@$(RUN) -m ruff format --quiet src/largebatch

bench: $(VENV)/.installed
	@set -e; for program in benchmarks/[!_]*.py; do \
		[ -e "$$program" ] || { echo "no benchmarks in this checkout"; break; }; \
		echo "== $$program"; $(RUN) "$$program"; \
	done

soak: $(VENV)/.installed
	@failed=; for program in soak/[!_]*.py; do \
		echo "== $$program"; $(RUN) "$$program" || failed="$$failed $$program"; \
	done; \
	[ -z "$$failed" ] || { echo "did not hold:$$failed"; exit 1; }

release:
	@$(PYTHON) scripts/release.py

evidence-quick: QUICK := --quick
evidence-quick evidence: $(VENV)/.installed
	@failed=; for expected in experiments/*/expected.json; do \
		name=$$(basename $$(dirname $$expected)); \
		echo "== experiments/$$name $(QUICK)"; \
		$(RUN) -m experiments.$$name.run $(QUICK) || failed="$$failed $$name"; \
	done; \
	[ -z "$$failed" ] || { echo "unlike their expected.json:$$failed"; exit 1; }

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch is named beside the package, so that pip chooses the pinned build and never another one.
# `.demo` marks an environment that can run the command line, `.installed` one for all tests.
$(VENV)/.demo $(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "largebatch requires Python 3.11 or newer, but $(PYTHON) is" \
			"$$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
		exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@[ -e $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) torch==2.13.0 --editable '.[$(EXTRA)]'
	@touch $(STAMPS)

$(VENV)/.demo: EXTRA := demo
$(VENV)/.demo: STAMPS := $(VENV)/.demo
$(VENV)/.installed: EXTRA := dev
$(VENV)/.installed: STAMPS := $(VENV)/.demo $(VENV)/.installed
