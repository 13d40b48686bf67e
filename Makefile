# make install | pretrain | test | check | docs; CPU=1 takes the small builds without a GPU.
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
	$(BIN)/python examples/pretrain.py $(ARGS)

test: $(VENV)/.installed-all
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

check: lint test

# Into site/; a broken link or an unknown name in the reference is an error.
docs: $(VENV)/.installed-all
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

# A venv that could not be completed is removed: half of one would pass for whole the next time.
$(VENV)/.made:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	touch $@

# What the larger installation holds need not be installed again for the smaller one. The tests use the
# libraries of contrib, too.
$(VENV)/.installed: $(REQUIREMENTS) | $(VENV)/.made
	$(PIP) -e .
	touch $@

$(VENV)/.installed-all: $(REQUIREMENTS) | $(VENV)/.made
	$(PIP) -e '.[dev,contrib,docs]'
	touch $(VENV)/.installed $@
