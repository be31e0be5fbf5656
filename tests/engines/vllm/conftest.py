"""Tests of the engine itself need vLLM: `make test-vllm` runs them in a virtual environment of their own."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("vllm") else ["live"]
