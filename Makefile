# Two commands on a fresh machine: make demo, make test. PYTHON chooses the interpreter of .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-triton lint bench install clean

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

test-all: $(INSTALLED) test-triton
	$(BIN)/python -m pytest -m "not gpu"

# The kernels on the oldest Triton that is supported and on the newest, each in a folder in front of the installed one.
TRITONS ?= ~=3.6.0 >=3.9
test-triton: $(INSTALLED)
	for version in $(foreach v,$(TRITONS),"$(v)"); do \
		folder="build/triton-$$(echo $$version | tr -dc 0-9.)"; \
		$(BIN)/python -m pip install --quiet --upgrade --no-deps --target "$$folder" "triton$$version" && \
		PYTHONPATH="$$folder" $(BIN)/python -m pytest tests/kernels/test_triton.py || exit 1; \
	done

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench/ --benchmark-only

clean:
	rm -rf $(VENV) build *.egg-info
