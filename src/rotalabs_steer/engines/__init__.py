"""Other programs that run language models, steered by the same vectors. Each is imported by its own name."""
