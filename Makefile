# make demo, make test: everything that is needed is installed first, into a virtual environment.
#
#   VENV=DIR       where the environment is, or will be made (.venv in this folder)
#   PYTHON=FILE    the interpreter to make it with; without it the first of PYTHONS that runs and fits
#   PYTEST_ARGS=   more arguments for pytest, as in: make test PYTEST_ARGS='-k spin -x'; '-n 0' for one process

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=

PYTHONS = python3.13 python3.14 python3.12 python3.11 python3.10 python3 python
BIN = $(VENV)/bin
PIP = "$(BIN)/python" -m pip
STAMP = $(VENV)/.spinsr-setup

# Exits 0 on an interpreter that can make the environment.
FITS = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))
MINOR = import sys; print('%d.%d' % sys.version_info[:2])

.DEFAULT_GOAL := help
.PHONY: help setup install demo test slow lint docs clean

help:
	@echo 'make demo    train SPIN x4 on a few photographs, test it, draw a picture (some minutes on two cores)'
	@echo 'make test    the fast tests'
	@echo 'make slow    the slow tests'
	@echo 'make lint    ruff (rules, format), import-linter (which package may import which) and pyright (types)'
	@echo 'make docs    the documentation as a site, in site/'
	@echo 'make setup   only install (into $(VENV))'
	@echo 'make clean   remove the environment, builds and caches; datasets, experiments and results stay'

# The stamp is written last, so a setup that was cut short is done again. It is looked at here and not by make itself,
# whose targets cannot contain spaces.
setup:
	@if [ -n "$(PYTHON)" ] && [ -x "$(BIN)/python" ] \
	    && [ "$$("$(PYTHON)" -c "$(MINOR)")" != "$$("$(BIN)/python" -c "$(MINOR)")" ]; then \
	  echo >&2 '$(VENV) was made with another Python than $(PYTHON): run make clean first, or give another VENV='; \
	  exit 1; \
	fi; \
	for file in setup.py pyproject.toml Makefile; do \
	  [ -e "$(STAMP)" ] && [ ! "$$file" -nt "$(STAMP)" ] && "$(BIN)/python" -c '' \
	    || exec $(MAKE) --no-print-directory install; \
	done

install:
	@if ! "$(BIN)/python" -c 'import pip' 2>/dev/null; then \
	  found=; \
	  for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
	    if "$$python" -c "$(FITS)" 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo >&2 '$(if $(PYTHON),$(PYTHON) does not run or does not fit,No Python that fits was found).' \
	      'Install Python 3.10 or later with its venv module,' \
	      'or say where it is: make PYTHON=/path/to/python3.13'; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found, $$("$$found" --version)"; \
	  clear=; [ ! -e "$(VENV)/pyvenv.cfg" ] || clear=--clear; \
	  "$$found" -m venv $$clear "$(VENV)"; \
	elif ! "$(BIN)/python" -c "$(FITS)"; then \
	  echo >&2 '$(VENV) has a Python that does not fit: spinsr needs 3.10 or later. Run make clean first.'; \
	  exit 1; \
	fi
	$(PIP) install --upgrade pip setuptools wheel
# Both from one index and in one command: a torchvision made for another torch does not import. A pair that is already
# in the environment (a build for one's own CUDA, or without CUDA) is kept.
	$(PIP) install 'torch>=2.6' torchvision
	$(PIP) install --no-build-isolation -e '.[dev]'
	"$(BIN)/python" -m spinsr.cli install-basicsr
# On a machine without libGL (a bare container) OpenCV's desktop build does not import.
	@"$(BIN)/python" -c 'import cv2' 2>/dev/null || $(PIP) install --force-reinstall --no-deps opencv-python-headless
	@"$(BIN)/python" -c 'import spinsr.archs'
	@touch "$(STAMP)"

demo: setup
	@"$(BIN)/python" scripts/demo.py

# A process for each core. The tensors of the tests are small: several threads would get in each other's way.
test: setup
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n auto --maxprocesses 4 -m 'not slow and not gpu and not browser' $(PYTEST_ARGS)

slow: setup
	@"$(BIN)/python" -m pytest -m 'slow and not gpu and not browser' $(PYTEST_ARGS)

lint: setup
	"$(BIN)/python" -m ruff check .
	"$(BIN)/python" -m ruff format --check .
	"$(BIN)/lint-imports" --no-cache
	"$(BIN)/python" -m pyright --pythonpath "$(BIN)/python"

docs: setup
	$(PIP) install --quiet --no-build-isolation -e '.[docs]'
	"$(BIN)/python" -m mkdocs build --strict

clean:
	rm -rf build site dist *.egg-info .pytest_cache .ruff_cache
	find spinsr scripts tests -name __pycache__ -prune -exec rm -rf {} +
	@if [ -e "$(VENV)/pyvenv.cfg" ]; then echo 'rm -rf $(VENV)'; rm -rf "$(VENV)"; fi
