# `make demo` and `make test` do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test faults check format bench docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "maskmend needs Python 3.10 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,formats,tensorboard,benchmark]'
	touch $@

demo: $(STAMP)
	$(BIN)/maskmend demo -o demo --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2

# What takes hours: thousands of kills, flawed inputs and large data sets (docs/reliability.md).
faults: $(STAMP)
	$(BIN)/python -m pytest -q -n 1 -m faults

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 -m 'not slow and not faults'

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# `make bench` lists the benches; `make bench NAME=pint ARGS="--workers 2"` runs one: a program, or a file for
# `maskmend benchmark`, whose results go to runs/NAME and are committed below docs/results when they are evidence.
DATA ?= ../shared/data
bench: $(STAMP)
ifdef NAME
	@if test -f bench/$(NAME).yaml; then set -x; $(BIN)/maskmend benchmark bench/$(NAME).yaml -o runs/$(NAME) --data $(DATA) $(ARGS); \
	else set -x; $(BIN)/python bench/$(NAME).py $(ARGS); fi
else
	@for file in $$(grep -l __main__ bench/*.py); do sed -n '1s/"""/  /gp' $$file | sed "s|^|make bench NAME=$$(basename $$file .py)|"; done
	@for file in bench/*.yaml; do sed -n '1s/^#/ /p' $$file | sed "s|^|make bench NAME=$$(basename $$file .yaml)|"; done
endif

docs: $(STAMP)
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .ruff_cache .import_linter_cache
