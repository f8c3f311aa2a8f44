# Every command a contributor needs; each is one or two lines. Everything happens in .venv.

PYTHON ?= python3
# ON in continuous integration: compiler warnings are errors.
WERROR ?= OFF
# Options for the benchmarks, for example BENCH="--scratch /mnt/nvme"; ENGINE="--shape A" for lsg bench engine.
BENCH ?=
# Options for test-numa, for example NUMA="--kernel FILE" or NUMA="--only '8 nodes'".
NUMA ?=
ENGINE ?=
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SERVER := runtime/sglang/requirements-cpu.txt

# Prints what pyproject.toml asks for, without building the project to find out.
REQUIREMENTS := import tomllib; \
	p = tomllib.load(open("pyproject.toml", "rb")); x = p["project"]["optional-dependencies"]; \
	print(*p["build-system"]["requires"], *p["project"]["dependencies"], *x["check"], *x["test"], sep="\n")

.PHONY: help setup build view check format test test-numa sanitize compat demo bench bench-kernels wheel clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/	/' | expand -t 15

setup: .venv/.complete  ## The environment .venv: torch, sglang for CPU, build, check and test tools

# The order matters: sglang's own requirements name GPU packages, so it comes last and without them. Where pip would
# fetch the CUDA build of torch, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves some gigabytes.
.venv/.complete: $(SERVER) pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -qq --upgrade pip
	$(PIP) install -qq torch==2.13.0
	$(PIP) install -qq -r $(SERVER)
	$(PIP) install -qq --no-deps sglang==0.5.18
	$(BIN)/python -c '$(REQUIREMENTS)' > .venv/requirements.txt
	$(PIP) install -qq "cmake>=3.25" ninja -r .venv/requirements.txt
	touch $@

build: setup  ## Compile lsg._core and install the project in place (edits to Python files need no rebuild)
	$(PIP) install -qq --no-build-isolation --no-deps \
		--config-settings=cmake.define.LSG_WERROR=$(WERROR) -e .

view:  ## build/view/lsg: the package as it looks when installed, for mypy and editors
	rm -rf build/view && mkdir -p build/view/lsg
	ln -s $(CURDIR)/csrc/lsg/* $(CURDIR)/convert $(CURDIR)/runtime build/view/lsg/

check: build view  ## Lint, format, types, stub and room walls
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict -p lsg
	MYPYPATH=build/view $(BIN)/python -m mypy.stubtest lsg._core --allowlist .ci/stubtest-allowlist.txt
	$(BIN)/lint-imports
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: setup  ## Rewrite the sources as `check` wants them
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	find csrc tests/cpp -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

test: build  ## The whole test suite; `make test PYTEST_ADDOPTS="-m 'not server'"` for the quick part
	$(BIN)/pytest

# The module runs in an ordinary Python, so the runtime of the sanitizers comes first; Python's own leaks are not ours.
# ThreadSanitizer sees the thread pool alone, and dislikes randomised addresses. -O2, because the tests take longer than the build.
SANITIZE := cmake -G Ninja -DCMAKE_BUILD_TYPE=Debug -DLSG_TESTS=ON \
	-Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
RUNTIMES = $(shell for n in asan ubsan stdc++; do $(CXX) -print-file-name=lib$$n.so; done)
sanitize: setup view  ## The core under ASan and UBSan, the thread pool under ThreadSanitizer: about twenty minutes
	PATH=$(CURDIR)/$(BIN):$$PATH; $(SANITIZE) -B build/asan \
		-DCMAKE_CXX_FLAGS="-O2 -D_GLIBCXX_ASSERTIONS -fsanitize=address,undefined -fno-sanitize-recover=undefined" && cmake --build build/asan
	PATH=$(CURDIR)/$(BIN):$$PATH; $(SANITIZE) -B build/tsan -DCMAKE_CXX_FLAGS="-O2 -fsanitize=thread" && \
		cmake --build build/tsan --target test_pool
	build/asan/tests/cpp/test_pool
	build/asan/tests/cpp/test_panels
	setarch -R build/tsan/tests/cpp/test_pool
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=tests \
		$(BIN)/pytest -p sanitized tests/kernels tests/format tests/memory

# Every supported sglang, from its wheel's source; they are downloaded once.
SGLANG_RELEASES := 15 16 17 18 19 20 21 22 23
compat: build  ## Check what lsg uses of sglang against every supported release
	mkdir -p build/sglang
	for n in $(SGLANG_RELEASES); do test -d build/sglang/0.5.$$n || { \
		$(PIP) download -qq --no-deps --only-binary=:all: --python-version 3.11 -d build/sglang/wheels sglang==0.5.$$n && \
		$(BIN)/python -m zipfile -e build/sglang/wheels/sglang-0.5.$$n-*.whl build/sglang/0.5.$$n; } || true; done
	SGLANG_SOURCES=build/sglang $(BIN)/pytest tests/compat

test-numa: build wheel  ## NUMA placement in emulated machines: about ten minutes, needs qemu-system-x86 and a kernel
	$(BIN)/python tests/numa/run.py $(NUMA)

demo: build  ## From a checkpoint to an answer: make one, convert it, serve it, ask it
	$(BIN)/python tests/demo/demo.py

bench: build  ## Measure this machine and rewrite the READMEs' tables
	$(BIN)/python benchmarks/convert.py $(BENCH)
	$(BIN)/python benchmarks/engine.py $(ENGINE)
	$(BIN)/python benchmarks/load.py $(BENCH)
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/served.py
	$(BIN)/python benchmarks/table.py

bench-kernels: setup  ## Google Benchmark of single kernels (apt install libbenchmark-dev)
	$(BIN)/cmake -S . -B build/bench-kernels -DCMAKE_BUILD_TYPE=Release -DLSG_BENCH=ON \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) > /dev/null
	$(BIN)/cmake --build build/bench-kernels --target lsg_bench_kernels
	build/bench-kernels/csrc/bench/lsg_bench_kernels $(KERNELS)

wheel: setup  ## dist/*.whl
	$(PIP) wheel --no-build-isolation --no-deps -w dist .

clean:  ## Remove everything that was made, but .venv
	rm -rf build dist .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
