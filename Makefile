# Two commands on a fresh machine: make demo, make test. PYTHON chooses the interpreter of .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint bench install clean

install: $(INSTALLED)

$(INSTALLED): setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.10"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m rmadapter.testbed.demo --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu"

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench/ --benchmark-only

clean:
	rm -rf $(VENV) build *.egg-info
