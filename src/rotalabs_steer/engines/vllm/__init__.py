"""Steering in vLLM: per request, in the compiled graph, with vLLM's prefix cache on.

This package is a plugin that vLLM finds by itself. An engine steers when it is configured with `steering_config`.
"""

from rotalabs_steer.engines.vllm.extraction import extract_vectors, extraction_engine
from rotalabs_steer.engines.vllm.offline import reload_vectors
from rotalabs_steer.engines.vllm.requests import SteeringRequest
from rotalabs_steer.engines.vllm.settings import steering_config

__all__ = ["SteeringRequest", "extract_vectors", "extraction_engine", "reload_vectors", "steering_config"]
