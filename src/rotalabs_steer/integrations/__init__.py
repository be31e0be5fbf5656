"""Other frameworks, steered: LangChain, lm-evaluation-harness and Inspect."""
