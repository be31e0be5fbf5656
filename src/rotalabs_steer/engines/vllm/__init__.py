"""Steering in vLLM: per request, in the compiled graph, with vLLM's prefix cache on.

This package is a plugin that vLLM finds by itself. An engine steers when it is configured with `steering_config`.
"""

from rotalabs_steer.engines.vllm.requests import SteeringRequest
from rotalabs_steer.engines.vllm.settings import steering_config

__all__ = ["SteeringRequest", "steering_config"]
