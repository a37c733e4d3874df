# The habits of the house. `make` on its own lists them.
# On Windows, or without make, the README has the plain pip lines.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BASE := $(VENV)-base
BASE_TESTS := base_install runtime_denoise runtime_image runtime_imports runtime_manifest \
	runtime_mapping runtime_pipeline runtime_streaming runtime_trust runtime_weighting

.PHONY: help quantize test test-base lint bench bench-overhead bench-compress bench-preflight \
	bench-runtime bench-unet bench-decoders bench-calibration bench-search clean

help:
	@echo "make quantize   set up, then run recipes/unet_int8.yaml on the built-in demo model"
	@echo "make test       set up, then run the tests"
	@echo "make test-base  the runtime's tests in an environment with the base install only"
	@echo "make lint       ruff and mypy, as CI runs them"
	@echo "make bench      the measurements behind the figures in README and docs"
	@echo "make bench-overhead  import, first picture and time beside the network, against the peers"
	@echo "make bench-compress  full-size SD 2.1: time and memory of conversion and compression, against the peers"
	@echo "make bench-preflight  a full-size run against what was estimated before it; after bench-compress"
	@echo "make bench-runtime  a full-size picture against the peers: time and memory; after bench-preflight"
	@echo "make bench-unet  where a call of the full-size UNet spends its time; after bench-preflight"
	@echo "make bench-decoders  how long full-size decoders take; after bench-preflight"
	@echo "make bench-calibration  what ranges, SmoothQuant, bias correction and split layers gain on the demo, or a MODEL"
	@echo "make bench-search  what a search finds on the demo, or for a MODEL, against hybrid and plain W8A8"
	@echo "make clean      remove build/ and the virtual environment"

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quantize: $(INSTALLED)
	$(BIN)/sdcompress quantize recipes/unet_int8.yaml

# Two processes: most tests keep one core busy. A file's tests stay in one of them; the longest
# files come first, and the second does not wait for what the first builds.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

$(BASE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt . pytest
	@touch $@

# The installed package is tested, not the one that lies here.
test-base: $(BASE)/.installed
	$(BASE)/bin/python -P -m pytest $(addprefix tests/test_,$(addsuffix .py,$(BASE_TESTS)))

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/quality.py

bench-overhead: $(INSTALLED)
	test -d build/unet_int8 || $(BIN)/sdcompress quantize recipes/unet_int8.yaml
	$(BIN)/python benchmarks/overhead.py build/unet_int8

bench-compress: $(INSTALLED)
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python benchmarks/execution.py
	$(BIN)/python benchmarks/memory.py

bench-preflight: $(INSTALLED)
	$(BIN)/python benchmarks/preflight.py

# FAST names a bundle of sd21_base_fast with a tiny decoder, whose rows are left out without.
bench-runtime: $(INSTALLED)
	$(BIN)/python benchmarks/runtime.py $(if $(FAST),--fast $(FAST))

bench-unet: $(INSTALLED)
	$(BIN)/python benchmarks/unet.py

bench-decoders: $(INSTALLED)
	$(BIN)/python benchmarks/decoders.py $(if $(FAST),--fast $(FAST))

# MODEL names a full-size diffusers folder, such as make_sd21.py makes, instead of the demo.
bench-calibration: $(INSTALLED)
	$(BIN)/python benchmarks/calibration.py $(if $(MODEL),--model $(MODEL))

bench-search: $(INSTALLED)
	$(BIN)/python benchmarks/search.py $(if $(MODEL),--model $(MODEL))

clean:
	rm -rf build $(VENV) $(BASE)
