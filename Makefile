# One virtual environment, made on first use and reused. PYTHON chooses the interpreter, WITH adds
# requirements, such as WITH="torch==2.5.*": give it when the environment is made.
PYTHON ?= python3
VENV ?= .venv
WITH ?=
BIN := $(VENV)/bin
# Of the tests: one process per core, no more than memory holds. TESTS= runs them in one process.
TESTS ?= -n logical --maxprocesses 8 --dist worksteal
# Of `make mutants-random`.
COUNT ?= 100
SEED ?= 0

.PHONY: demo test test-slow faults test-references test-oldest test-versions test-settings
.PHONY: lint types docs check coverage mutants mutants-random release-check figures clean
.DEFAULT_GOAL := test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# A stamp per set of extras; editing pyproject.toml installs again.
$(VENV)/.%: pyproject.toml testbed/pyproject.toml | $(VENV)/bin/python
	@echo "installing rwguidance[$*] and its test bed into $(VENV) (PyTorch is large: minutes on first use)"
	$(BIN)/python -m pip install --quiet --editable '.[$*]' --editable testbed $(foreach one,$(WITH),'$(one)')
	@touch $@

demo: $(VENV)/.demo  ## align two text-to-image models; prints where the pictures are
	$(BIN)/rwguidance demo

test: $(VENV)/.dev  ## the default tests
	$(BIN)/python -m pytest $(TESTS)

test-slow: $(VENV)/.dev  ## the long ones: mutants and training at length
	$(BIN)/python -m pytest -m slow

test-references: $(VENV)/.dev  ## rewards against their references; see tests/rewards/test_references.py
	$(BIN)/python -m pytest -m references

faults: $(VENV)/.dev  ## errors, kills, full disks, damage and hostile files: a table of what survived
	OMP_NUM_THREADS=1 PYTHONPATH=tests:. $(BIN)/python -m faults

coverage: $(VENV)/.dev  ## the default tests, and which lines they run: a report, not a bound
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report
	$(BIN)/python -m coverage html --quiet

mutants: $(VENV)/.dev  ## formulas broken one by one; all must be noticed by a test
	$(BIN)/python tests/mutants.py

mutants-random: $(VENV)/.dev  ## COUNT expressions of any file changed, chosen by SEED
	rm -rf .line_map
	RWGUIDANCE_LINE_MAP=.line_map PYTHONPATH=tests $(BIN)/python -m pytest $(TESTS) -p line_map
	$(BIN)/python tests/mutants.py --random $(COUNT) --seed $(SEED) --lines .line_map

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev  ## HTML in docs/_build: warnings, dead links and loads from elsewhere are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	$(BIN)/python docs/check_site.py docs/_build

check: lint types test docs  ## everything that CI runs

figures: $(VENV)/.dev  ## the figures in docs/ anew, from the shipped weights
	$(BIN)/python testbed/benchmarks/figures.py

# The tests on the oldest supported versions, in an environment of their own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip uv
	.venv-oldest/bin/uv pip install --python .venv-oldest --quiet --resolution lowest-direct \
	    --editable '.[dev]' --editable testbed
	.venv-oldest/bin/python -m pytest $(TESTS) -W default  # old versions meet deprecations of theirs

# The tests of the backbones on several versions of diffusers and transformers: a table.
test-versions: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet uv
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/versions.py

# The tests with other threads, processors and addresses of weights: a table.
test-settings: $(VENV)/.dev
	$(BIN)/python tests/settings.py

# Both distributions, built, checked, and installed in an empty environment, where README's lines and
# the demo run from the wheels alone: see RELEASING.md.
release-check:
	rm -rf dist .venv-release
	$(PYTHON) -m venv .venv-release/tools
	.venv-release/tools/bin/python -m pip install --quiet build twine
	.venv-release/tools/bin/python -m build --outdir dist .
	.venv-release/tools/bin/python -m build --outdir dist testbed
	.venv-release/tools/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv .venv-release/empty
	.venv-release/empty/bin/python -m pip install --quiet \
	    "$$(ls dist/rwguidance-*.whl)[demo]" dist/rwguidance_testbed-*.whl
	cd .venv-release && empty/bin/python -c "import backbones, rewards, rwguidance, rwguidance_testbed"
	cd .venv-release && empty/bin/rwguidance backbones
	cd .venv-release && empty/bin/rwguidance rewards
	sed -n '/^```python$$/,/^```$$/{/^```/!p;}' README.md > .venv-release/readme.py
	cd .venv-release && empty/bin/python readme.py
	cd .venv-release && empty/bin/rwguidance demo --quick

clean:
	rm -rf .venv .venv-oldest .venv-release .coverage .line_map htmlcov dist docs/_build out
