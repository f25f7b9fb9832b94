# The front door. `make demo` and `make test` need only Python 3.11 or newer with venv, a C++20 compiler and make: they
# create .venv, install what is missing there, build, and run.
#
#   make test TORCH=torch==2.10.0                                    another torch
#   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu       a torch without CUDA: a smaller download
#   make test BIGMODEL_MAX_JOBS=1                                    fewer compilers at once
#   make build BIGMODEL_CUDA=ON BIGMODEL_CUDA_ARCHS='80;90'          CUDA kernels, also without a GPU or a torch with CUDA
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
# Where setup.py compiles.
PACKAGE_BUILD = build/cmake-$(shell $(BIN)/python -c \
    'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform(), sep="-")')
PIP := $(BIN)/python -m pip --disable-pip-version-check
CXX_FILES = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')
TRITON_TESTS := $(addprefix tests/test_,$(addsuffix .py,triton triton_attention triton_launches triton_tf32 triton_tune triton_warm_up))
# Apart from the others: they put the emulator's eyes on all of a process's memory.
EMULATOR_TESTS := tests/ptx_emulator tests/test_cuda_vocabulary.py tests/test_cuda_launches.py
OP_TESTS := $(addprefix tests/test_,$(addsuffix .py,attention attention_weights attention_varlen linear feed_forward add_norm rotary attention_decode linear_cross_entropy backends))
BUILD_FILES := setup.py pyproject.toml CMakeLists.txt $(shell find cmake csrc python -type f)

NO_PYTHON := '$(PYTHON) is not Python 3.11 or newer, which bigmodel_kernels needs: make PYTHON=python3.11'
NO_COMPILER := '$(CXX) is no C++20 compiler, which bigmodel_kernels needs: install g++ 12 or newer \
    (apt-get install g++), or name another: make CXX=clang++'

.PHONY: demo test test-triton test-emulator test-gpu test-cpp test-isa bench peers lint format build clean

demo: build
	$(BIN)/bigmodel info
	$(BIN)/bigmodel train --compare --epochs 3
	$(BIN)/bigmodel bench --quick

# The Triton kernels first, interpreted, where Triton is installed. pytest last, so that its summary is the closing
# line. Its workers share the processors, so waiting threads must sleep:
# spinning ones take the time of those that work.
test: build test-cpp $(VENV)/.nvcc
	@if $(BIN)/python -c 'import triton' 2> /dev/null; then $(MAKE) --no-print-directory test-triton; fi
	$(MAKE) --no-print-directory test-emulator
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) $(addprefix --ignore=,$(EMULATOR_TESTS))

# Every case of the ops on the Triton kernels, run in numpy by Triton's interpreter: some minutes on two cores.
test-triton: build
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) -k triton $(TRITON_TESTS) $(OP_TESTS)

# The CUDA kernels, executed on the CPU by tests/ptx_emulator, and the emulator itself: also a part of `make test`.
test-emulator: build $(VENV)/.nvcc
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) $(EMULATOR_TESTS)

# The same cases on a CUDA device, compiled by both backends, and what only a device can show. The package is built once
# more, for one that was built before there was an nvcc has no CUDA kernels; nothing is compiled twice.
test-gpu: $(VENV)/.nvcc build
	$(BIN)/python setup.py -q build_ext --inplace
	BIGMODEL_TEST_GPU=1 $(BIN)/python -m pytest -q -k '(triton or cuda) and (case or repeats) or test_triton or test_gpu' \
	    $(TRITON_TESTS) $(OP_TESTS) tests/test_gpu.py

# The kernels' own tests: with the objects that the package is made of, then with others, built without torch under the
# address and undefined-behaviour sanitizers. These only for two targets, since sanitized kernels compile slowly and every
# target has the same sources.
test-cpp: build
	$(call cpp_tests,$(PACKAGE_BUILD))
	$(BIN)/cmake -S . -B build/cpp-sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) -DBIGMODEL_EXTENSION=OFF \
	    -DBIGMODEL_TESTS=ON -DBIGMODEL_SANITIZE=address,undefined -DBIGMODEL_CPU_TARGETS=avx2
	$(call cpp_tests,build/cpp-sanitized)

define cpp_tests
	$(BIN)/cmake --build $(1)
	$(BIN)/ctest --test-dir $(1) --output-on-failure --no-tests=error -j $(PYTEST_WORKERS)
endef

# CPU targets that this machine lacks, emulated: AVX-512 and AMX on AVX2, Arm in QEMU. Not part of test: it takes long.
test-isa: $(VENV)/.tools
	tests/cpp/emulation/run $(BIN) $(BIN)/python

bench: build
	$(BIN)/python -m pytest bench

# Other engines for `bigmodel bench --peers all`, each in a virtual environment that none of the rest uses. Optional: what
# cannot be installed is absent from the table, with its reason.
PEERS := engines zentorch ipex

peers: build $(addprefix $(VENV)/peers/,$(addsuffix /.installed,$(PEERS)))

# zentorch brings its own torch; the others read modules by the one that we use.
$(VENV)/peers/%/.installed: bench/peers/requirements-%.txt
	rm -rf $(VENV)/peers/$*
	$(PYTHON) -m venv $(VENV)/peers/$*
	$(if $(filter zentorch,$*),,$(VENV)/peers/$*/bin/python -m pip --disable-pip-version-check install -q \
	    $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)')
	$(VENV)/peers/$*/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf build dist $(VENV) *.egg-info bigmodel_kernels/_C*.so

# Each stamp is one step of the installation, redone when what it depends on is newer.
build: $(VENV)/.built

$(VENV)/.tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { echo $(NO_PYTHON); exit 1; }
	@echo | $(CXX) -std=c++20 -fsyntax-only -x c++ - 2> /dev/null || { echo $(NO_COMPILER); exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q 'setuptools>=77' 'cmake>=3.24' 'ninja>=1.11' 'pybind11>=2.13'
	@touch $@

# nvcc, which compiles what the emulator or a device executes: from PyPI where the machine has none, and its packages exist.
NVCC_PACKAGES := nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl
$(VENV)/.nvcc: $(VENV)/.tools
	@command -v nvcc > /dev/null || test -x /usr/local/cuda/bin/nvcc \
	    || $(PIP) install -q $(patsubst %,'%==13.0.*',$(NVCC_PACKAGES)) \
	    || echo 'No nvcc here: the tests of the CUDA kernels will be skipped.'
	@touch $@

# torch comes first and alone, so that its version and its index are the ones named above.
$(VENV)/.torch: $(VENV)/.tools
	$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

# Built by hand first, because pip hides the progress of a build; pip then finds nothing left to compile. The programs of
# test-cpp are only configured here.
$(VENV)/.built: $(VENV)/.torch $(BUILD_FILES)
	@echo 'Compiling the kernels, once per CPU target: some minutes on two cores.'
	CMAKE_ARGS="$$CMAKE_ARGS -DBIGMODEL_TESTS=ON" $(BIN)/python setup.py -q build_ext --inplace
	$(PIP) install -q --no-build-isolation -e '.[test,dev]'
	@touch $@
