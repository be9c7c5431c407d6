# One gate: `make check` is what pre-commit, .ci/run and a person run. It expects the environment of the README's
# test command: pip install -c constraints.txt -e '.[test]'

PYTHON ?= python
PACKAGES = bbt_fast.export bbt_fast.engine bbt_fast.tuner bbt_fast.service bbt_fast.benchmarks
PYTEST_ARGS ?= -n 2 --dist loadfile

.PHONY: check check-all check-oldest lint format types test test-narrow test-slow test-ray test-kernels test-cluster demo clean

check: lint types test

check-all: check test-slow test-ray test-kernels test-cluster

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# The sources stand at the top of the checkout, whose folder may have any name, and mypy does not follow an editable
# install's import hook. A folder of links gives it the tree as it is when installed.
types: build/mypy
	MYPYPATH=build/mypy $(PYTHON) -m mypy -m bbt_fast $(PACKAGES:%=-p %)

build/mypy: Makefile
	mkdir -p $@/bbt_fast
	cd $@/bbt_fast && ln -sfn ../../../__init__.py ../../../py.typed ../../../export ../../../engine ../../../tuner ../../../service ../../../benchmarks .
	touch $@

test:
	$(PYTHON) -m pytest $(PYTEST_ARGS) -m "not slow"

# The engines as on a CPU with AVX2 alone: oneDNN (PyTorch, OpenVINO), PyTorch's own kernels and numpy's OpenBLAS can be
# told so. ONNX Runtime's kernels cannot.
NARROW = $(addprefix tests/engine/test_,contract.py golden.py openvino.py automatic.py packing.py precisions.py crew.py) \
	tests/export/test_families.py tests/export/test_gate.py
test-narrow:
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OPENBLAS_CORETYPE=Haswell \
		$(PYTHON) -m pytest $(PYTEST_ARGS) -m "not slow" $(NARROW)

RAY = tests/tuner/cluster
test-slow:
	$(PYTHON) -m pytest $(PYTEST_ARGS) -m "slow and not cluster" --ignore=$(RAY)

# Ray by itself: it forks the process that starts it, and that of the other tests has grown too large to be copied.
test-ray:
	$(PYTHON) -m pytest -m "slow and not cluster" $(RAY)

# The Triton kernels by Triton's interpreter. Triton is not among the tests' packages: it takes a gigabyte. PyTorch's own
# version stays where there is one. Where Triton cannot be installed, the tests are skipped.
test-kernels:
	-$(PYTHON) -m pip show -q triton || $(PYTHON) -m pip install -q 'triton>=3.7'
	$(PYTHON) -m pytest tests/engine/test_kernels.py

# Whole runs on a Ray cluster whose processes are killed: minutes, and a machine with nothing else to do.
test-cluster:
	$(PYTHON) -m pytest -m cluster

# The fast tests with the oldest versions that setup.cfg allows, in an environment of their own.
check-oldest: build/oldest
	build/oldest/bin/python -m pytest $(PYTEST_ARGS) -m "not slow"

build/oldest: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv --clear $@
	$@/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test]'
	touch $@

demo:
	bbt-fast --engine ort

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
