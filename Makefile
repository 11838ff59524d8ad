# Two commands on a fresh machine: make demo, make test. PYTHON chooses the interpreter of .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SECONDS ?= 60
FILES ?= 30000
# Processes that run tests.
WORKERS ?= 2
# Another torch than that of .venv, for the wheel's test.
TORCH ?= torch==2.10.*

.PHONY: demo test test-all test-triton test-open-clip lint docs bench install wheel test-wheel sanitize fuzz fuzz-images clean

install: $(INSTALLED)

# torch comes first: the extension is compiled against it.
$(INSTALLED): setup.py pyproject.toml $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch>=2.10"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m rmadapter.testbed.demo --out demo

# A worker a core, of one thread each: with two threads each on two cores a step of the small models takes up to four
# times as long. A worker without tests takes some of another's. pytest-benchmark does not run beside pytest-xdist.
# Bytecode is kept whatever the environment says: else every process that a test starts compiles the packages anew.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --benchmark-disable -n $(WORKERS) --dist worksteal

test: $(INSTALLED)
	$(PYTEST)

test-all: $(INSTALLED) test-triton test-open-clip
	$(PYTEST) -m "not gpu"

# The kernels on the oldest Triton that is supported and on the newest, each in a folder in front of the installed one.
TRITONS ?= ~=3.6.0 >=3.9
test-triton: $(INSTALLED)
	for version in $(foreach v,$(TRITONS),"$(v)"); do \
		folder="build/triton-$$(echo $$version | tr -dc 0-9.)"; \
		$(BIN)/python -m pip install --quiet --upgrade --no-deps --target "$$folder" "triton$$version" && \
		PYTHONPATH="$$folder" $(BIN)/python -m pytest tests/kernels/test_triton*.py && \
		PYTHONPATH="$$folder" $(BIN)/python -m bench.machine_code --arch sm_80,sm_90,sm_100 --r 16,32,64 --check || exit 1; \
	done

# Everything that knows a model, on the oldest open_clip and libraries that are supported and on the newest, each in a
# folder in front of the installed ones. OPEN_CLIPS takes any requirement of pip, such as git+URL for its main branch.
OPEN_CLIPS ?= open_clip_torch==2.32.0,timm==1.0.17,transformers==4.51.*,tokenizers~=0.21.0,huggingface-hub~=0.30 open_clip_torch,timm,transformers
test-open-clip: $(INSTALLED)
	number=0; for versions in $(OPEN_CLIPS); do \
		number=$$((number + 1)); folder="build/open-clip-$$number"; \
		$(BIN)/python -m pip install --quiet --upgrade --no-deps --target "$$folder" $$(echo "$$versions" | tr , ' ') && \
		PYTHONPATH="$$folder" $(BIN)/python -m pytest -q --benchmark-disable tests/clip tests/step/test_train_step.py tests/step/test_all_models.py \
			tests/tuners || exit 1; \
	done

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

# The site, in build/site; warnings, and links that lead nowhere, are errors. Then what the pages show is run.
docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict
	$(PYTEST) -m "not gpu" tests/test_documentation.py

bench: $(INSTALLED)
	$(BIN)/python -m pytest bench/ --benchmark-only

wheel: $(INSTALLED)
	rm -rf build/lib* build/bdist* build/temp*
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# The wheel in an environment of its own: the extension built on one torch runs on another.
test-wheel: wheel
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet "$(TORCH)"
	build/wheel-env/bin/python -m pip install --quiet --force-reinstall --no-deps dist/rmadapter-*.whl
	build/wheel-env/bin/python -m pip install --quiet "$(TORCH)" "rmadapter[test]" --find-links dist
	build/wheel-env/bin/pytest tests/kernels/test_cpu.py tests/kernels/test_cpu_layouts.py

# Address and undefined-behaviour sanitizers over the backend's tests, with a build of its own.
SANITIZED := build/sanitize
sanitize: $(INSTALLED)
	RMADAPTER_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED)/lib RMADAPTER_TEST_LIBRARY=$(SANITIZED) \
	  $(BIN)/pytest -p no:cacheprovider -m "not slow" tests/kernels/test_cpu.py tests/kernels/test_cpu_layouts.py

# Random shapes, strides and flags against the reference, each seed printed where it fails.
fuzz: $(INSTALLED)
	$(BIN)/python tests/kernels/fuzz_cpu.py --seconds $(SECONDS)

# Damaged image files of every format: they are read or refused in a sentence.
fuzz-images: $(INSTALLED)
	$(BIN)/python tests/data/fuzz_images.py --files $(FILES)

clean:
	rm -rf $(VENV) build *.egg-info
