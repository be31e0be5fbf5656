"""Steered models in other frameworks: LangChain, lm-evaluation-harness and Inspect."""
