# One virtual environment, made on first use and reused. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-references test-oldest test-versions test-settings lint types docs check figures clean
.DEFAULT_GOAL := test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp per set of extras; editing pyproject.toml installs again.
$(VENV)/.%: pyproject.toml testbed/pyproject.toml | $(VENV)/bin/python
	@echo "installing rwguidance[$*] and its test bed into $(VENV) (PyTorch is large: minutes on first use)"
	$(BIN)/python -m pip install --quiet --editable '.[$*]' --editable testbed
	@touch $@

demo: $(VENV)/.demo  ## align two text-to-image models; prints where the pictures are
	$(BIN)/rwguidance demo

test: $(VENV)/.dev  ## the default tests
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev  ## the long ones: mutants and training at length
	$(BIN)/python -m pytest -m slow

test-references: $(VENV)/.dev  ## rewards against their references; see tests/rewards/test_references.py
	$(BIN)/python -m pytest -m references

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev  ## HTML in docs/_build, warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

check: lint types test docs  ## everything that CI runs

figures: $(VENV)/.dev  ## the figures in README.md and docs/ anew, from the shipped weights
	$(BIN)/python testbed/benchmarks/figures.py

# The tests on the oldest supported versions, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip uv
	.venv-oldest/bin/uv pip install --python .venv-oldest --quiet --resolution lowest-direct \
	    --editable '.[dev]' --editable testbed
	.venv-oldest/bin/python -m pytest -W default  # old versions meet deprecations of theirs

# The tests of the backbones on several versions of diffusers and transformers: a table.
test-versions: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet uv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/versions.py

# The tests with other threads, processors and addresses of weights: a table.
test-settings: $(VENV)/.dev
	$(BIN)/python tests/settings.py

clean:
	rm -rf .venv .venv-oldest docs/_build out
