# Needs make and a Python of at least 3.11; everything else is installed into $(VENV) by the first target that needs it.

VENV   ?= .venv
EXTRA  ?= dev
PYTHON ?=
JOBS   ?= 2
VERSIONS ?= 3.11 3.12 3.13

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-slow test-all test-complete test-third-party test-published lint format fixtures \
    bench bench-quick clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "PYTHON=… chooses the Python, JOBS=… the number of test processes, ONLY=… the fixtures to make."

install: $(STAMP) ## make a virtual environment in .venv and install the package there

CHECKPOINT := fixtures/checkpoints/nnx_model_optimizer_standard/checkpoint
MODELS := --nnx-model fixtures/models.py:nnx_transformer --linen-model fixtures/models.py:linen_transformer \
    --inputs fixtures/models.py:transformer_inputs

demo: $(STAMP) ## convert real checkpoints both ways and show the proof
	@$(BIN)/flax-convert demo
	@printf '\n3. A checkpoint of fixtures/ from the command line: NNX → Linen → NNX\n\n'
	@$(BIN)/flax-convert nnx-to-linen $(CHECKPOINT) demo-output/linen $(MODELS) \
	    --optimizer fixtures/models.py:adamw_schedule --force
	@$(BIN)/flax-convert linen-to-nnx demo-output/linen demo-output/nnx $(MODELS) --force
	@$(BIN)/flax-convert verify demo-output/nnx demo-output/linen $(MODELS) --optimizer fixtures/models.py:adamw_schedule

test: $(STAMP) ## run the tests, without the slow ones
	@$(PYTEST) -m "not slow"

test-slow: $(STAMP) ## run only the slow tests
	@$(PYTEST) -m slow

test-complete: $(STAMP)
	@$(PYTEST)

test-all: ## run all tests with every supported Python on this machine
	@tested=; failed=; \
	for version in $(VERSIONS); do \
	    python=$$(sh .ci/find-python $$version); \
	    if [ -z "$$python" ]; then echo "Python $$version: skipped, it is not installed"; continue; fi; \
	    echo "Python $$version: $$python"; \
	    tested="$$tested $$version"; \
	    $(MAKE) --no-print-directory test-complete VENV=.venv-$$version EXTRA=test PYTHON="$$python" \
	        || failed="$$failed $$version"; \
	done; \
	if [ -z "$$tested" ]; then echo "None of Python $(VERSIONS) is installed." >&2; exit 1; fi; \
	if [ -n "$$failed" ]; then echo "Failed with Python$$failed." >&2; exit 1; fi; \
	echo "Passed with Python$$tested."

test-third-party: ## run the tests on models of others, in a virtual environment of their own
	@$(MAKE) --no-print-directory test-published VENV=.venv-third-party EXTRA=third-party

test-published: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/rules/align/published.txt
	@$(PYTEST) -rs tests/rules/align/test_third_party.py tests/rules/align/test_published_pairs.py \
	    tests/round_trips/test_transformers.py

lint: $(STAMP) ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(STAMP) ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

fixtures: $(STAMP) ## make the checkpoints in fixtures/ again
	@$(BIN)/python fixtures/make.py $(if $(ONLY),--only '$(ONLY)')

bench: $(STAMP) ## measure the converter against today's way (long; ARGS="--cases rename --sizes 2GB")
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m benchmarks $(ARGS)

bench-quick: $(STAMP) ## measure a little of it, in a minute
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m benchmarks --quick $(ARGS)

clean: ## remove everything that was made here, virtual environments too
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment is made again when another Python is asked for, and brought up to date after a change of
# pyproject.toml. Only then does a recipe below run.
SHOW_VERSION = import sys; print("%d.%d" % sys.version_info[:2])
ifneq ($(strip $(PYTHON)),)
ifneq ($(shell $(PYTHON) -c '$(SHOW_VERSION)' 2>/dev/null),$(shell $(BIN)/python -c '$(SHOW_VERSION)' 2>/dev/null))
.PHONY: $(STAMP)
endif
endif

$(STAMP): pyproject.toml
	@python='$(PYTHON)'; \
	python=$${python:-$$(sh .ci/find-python)} || exit 1; \
	if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
	    echo "flax-convert needs Python 3.11 or newer; $$python is $$("$$python" --version 2>&1)." >&2; \
	    echo "Name another: make PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	fi; \
	if [ "$$("$$python" -c '$(SHOW_VERSION)')" != "$$($(BIN)/python -c '$(SHOW_VERSION)' 2>/dev/null)" ]; then \
	    echo "Making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	fi; \
	echo "Installing flax-convert[$(EXTRA)] into $(VENV)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRA)]'
	@touch $@
