"""Tests with other steering packages: `make test-peers` runs them in a virtual environment that has these."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("steering_vectors") and find_spec("repeng") else ["test_*.py"]
