"""The model that a verb is told to work on."""

from rotalabs_steer.model_sources import SAMPLE, load_model, resolve_model, resolve_source

__all__ = ["SAMPLE", "load_model", "resolve_model", "resolve_source"]
