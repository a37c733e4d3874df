# The habits of the house. `make` on its own lists them.
# On Windows, or without make, the README has the plain pip lines.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help quantize test lint types bench clean

help:
	@echo "make quantize   set up, then run recipes/unet_int8.yaml on the built-in demo model"
	@echo "make test       set up, then run the tests"
	@echo "make lint       ruff and mypy, as CI runs them"
	@echo "make bench      the measurements behind the figures in README and docs"
	@echo "make clean      remove build/ and the virtual environment"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quantize: $(INSTALLED)
	$(BIN)/sdcompress quantize recipes/unet_int8.yaml

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/methods.py

clean:
	rm -rf build $(VENV)
