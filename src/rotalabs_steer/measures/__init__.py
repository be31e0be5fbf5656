"""What steering does to a model, measured: propensity, coherence, capability, detection and text statistics."""
