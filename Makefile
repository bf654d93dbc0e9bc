# Each target sets itself up on a fresh machine with only Python (3.10 or newer) and make.
# Another Python: make demo PYTHON=python3.12        Another folder: make test VENV=/tmp/venv
# For make interop, which needs other packages, the folder is INTEROP_VENV, not VENV.
# More cores: make test TEST_PROCESSES=8             Longer: make chaos MINUTES=30, or CHAOS="--kills 100"

PYTHON ?= python3
VENV ?= .venv
INTEROP_VENV ?= .venv-interop
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-avx2 chaos lint format conformance interop run-interop clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.plots  ## Train a first model, for about a minute on any machine, and let it write.
	$(BIN)/craft train
	$(BIN)/craft generate latest --max-new-tokens 300

test: lint  ## Lint, check types, run every test.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

# Common processors have no bfloat16: oneDNN and torch are told to use no more than AVX2 of this one. Says nothing
# new on a machine that has no more; the tests marked `precision` are those whose result depends on it.
test-avx2: $(VENV)/.dev  ## Run the tests of number formats as on a processor without bfloat16.
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(BIN)/python -m pytest -n $(TEST_PROCESSES) -m precision

chaos: $(VENV)/.dev  ## Kill runs, damage checkpoints, fill disks, cut links, make mistakes.
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m chaos tests/chaos tests/distributed $(if $(MINUTES),--minutes $(MINUTES)) $(CHAOS)

lint: $(VENV)/.dev  ## Lint and check types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code and fix what can be fixed.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

conformance: $(VENV)/.conformance  ## Run upstream's own tests over the models and tokenizers (UPSTREAM=checkout: all of them).
	$(BIN)/python tests/conformance/run.py $(if $(UPSTREAM),--upstream $(UPSTREAM)) -- -n $(TEST_PROCESSES)

interop:  ## Run other people's tools on small models, in an environment of its own (INTEROP_VENV).
	$(MAKE) --no-print-directory run-interop VENV=$(INTEROP_VENV)

run-interop: $(VENV)/.interop
	$(BIN)/python -m pytest -m interop tests/interop tests/hub/test_guide.py

clean:  ## Remove the environment and caches; outputs/ stays.
	rm -rf $(VENV) $(INTEROP_VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp files say what is installed; a changed pyproject.toml or constraints.txt installs again.
$(VENV)/.%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("craft needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]' --constraint constraints.txt
	@touch $@
