"""Text that a model writes: for many prompts at once, measured, or streamed."""
