"""Judges, which score how much a text shows a behavior, and detectors, which say whether it does."""
