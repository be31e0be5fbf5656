"""Measures of what steering does to a model: propensity, coherence, capability, detection and text statistics."""
