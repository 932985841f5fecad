# make demo   narrate the shipped clip; makes its own environment, without torch
# make test   the test suite; makes its own environment, with torch
# make check  ruff and mypy
# make bench  the uncached loop against ours; writes bench/results/narrate.json and the README's table
# make nano   train, judge and pack the shipped small model (over an hour on two cores)

PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
PIP := -m pip install --quiet --disable-pip-version-check
export DS_BUILD_OPS = 0
export DS_ACCELERATOR ?= cpu

.PHONY: demo test slow check bench nano clean

# An environment is made again only when the requirements change; the code itself is installed in place.
$(DEMO)/.made: pyproject.toml CMakeLists.txt
	$(PYTHON) -m venv $(DEMO)
	$(DEMO)/bin/python $(PIP) --editable .
	touch $@

$(DEV)/.made: pyproject.toml CMakeLists.txt constraints.txt
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(DEMO)/.made
	$(DEMO)/bin/lavila-fast demo

test: $(DEV)/.made
	$(DEV)/bin/python -m pytest -m "not slow" $(ARGS)

slow: $(DEV)/.made
	$(DEV)/bin/python -m pytest -m slow $(ARGS)

check: $(DEV)/.made
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

bench: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.narrate --output bench/results/narrate.json
	@$(DEV)/bin/python -m lavila_fast.bench.report

TRAIN := $(DEV)/bin/torchrun --standalone --nproc_per_node=2 -m lavila_fast.train
nano: $(DEV)/.made
	for recipe in nano_image nano_narrator nano_dual; do \
	    $(TRAIN) $$recipe --output runs/$$recipe --resume || exit 1; done
	$(DEV)/bin/python -m lavila_fast.train.ship runs --output runs/nano
	$(DEV)/bin/python -m lavila_fast.train.evaluate_kitchen runs/nano --output bench/results/nano_quality.json
	$(DEV)/bin/python -m lavila_fast.bench.report
	$(DEV)/bin/python -m lavila_fast.export.bundle runs/nano/narrator.safetensors --name nano --half \
	    --tokenizer runs/nano/narrator_tokenizer.json --dual-encoder runs/nano/dual_encoder.safetensors \
	    --text-tokenizer runs/nano/text_tokenizer.json --card docs/NANO.md --output lavila_fast/assets/nano \
	    --note "knows only its generated miniature kitchen; for real video see: lavila-fast models list"

clean:
	rm -rf $(DEMO) $(DEV) build .pytest_cache .mypy_cache .ruff_cache
