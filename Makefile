# make install | pretrain | test | lint | check | docs; CPU=1 installs small builds without GPU support.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(if $(filter 1,$(CPU)),-c constraints/cpu.txt)
REQUIREMENTS := pyproject.toml constraints/cpu.txt

.PHONY: install pretrain test lint check docs
.NOTPARALLEL:

install: $(VENV)/.installed-all

pretrain: $(VENV)/.installed
	$(BIN)/python -m ahm_gym pretrain $(ARGS)

# Many tests start processes, which take twice as long without cached bytecode.
test: $(VENV)/.installed-all
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# --verifytypes ignores --pythonpath, and does not see what an editable installation points to.
lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	PATH='$(abspath $(BIN))':"$$PATH" PYTHONPATH='$(CURDIR)' pyright --verifytypes ahm_gym --ignoreexternal
	$(BIN)/lint-imports

check: lint test

# Builds into site/. A broken link or an unknown name in the reference is an error.
docs: $(VENV)/.installed-all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# An incomplete environment is removed: otherwise the next call would take it for complete.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	touch $@

# The larger installation includes the smaller one. The tests also use the libraries of contrib.
$(VENV)/.installed: $(REQUIREMENTS) | $(VENV)/.made
	$(PIP) -e .
	touch $@

$(VENV)/.installed-all: $(REQUIREMENTS) | $(VENV)/.made
	$(PIP) -e '.[dev,contrib,docs]'
	touch $(VENV)/.installed $@
