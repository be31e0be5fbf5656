"""Measuring what steering does: effect, coherence cost, and the layer and strength that balance them."""
