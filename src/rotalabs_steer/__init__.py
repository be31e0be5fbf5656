"""Activation steering of language models: make steering vectors, apply them, measure what they do.

import rotalabs_steer as rs

tuned = rs.tune(model, tokenizer, "pairs.jsonl", "tuned/calm")
with rs.steer(model, "tuned/calm=0.8"):
    model.generate(**inputs)
"""

from typing import TYPE_CHECKING

from rotalabs_steer.lazy_names import lazy_names

if TYPE_CHECKING:
    from rotalabs_steer.datasets import load_pairs
    from rotalabs_steer.errors import NotSteeredError, SteeringError
    from rotalabs_steer.extraction import extract_vectors
    from rotalabs_steer.model.activations import ActivationCache, ActivationHook, extract_activations
    from rotalabs_steer.model.configs import MODEL_CONFIGS, ModelConfig, get_model_config, infer_model_config
    from rotalabs_steer.steering import (
        Ablate,
        ActivationInjector,
        AfterMarker,
        Clamp,
        LinearDecay,
        MultiVectorInjector,
        NotSteeringWarning,
        Rotate,
        SteeredModel,
        StopAfter,
        TokenRange,
        fit_condition,
        steer,
        steering_of,
        unsteered,
    )
    from rotalabs_steer.tuning import TunedSteering, tune
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

__version__ = "2.0.0.dev0"

__all__ = [
    "MODEL_CONFIGS",
    "Ablate",
    "ActivationCache",
    "ActivationHook",
    "ActivationInjector",
    "AfterMarker",
    "Clamp",
    "LinearDecay",
    "ModelConfig",
    "MultiVectorInjector",
    "NotSteeredError",
    "NotSteeringWarning",
    "Rotate",
    "SteeredModel",
    "SteeringError",
    "SteeringVector",
    "SteeringVectorSet",
    "StopAfter",
    "TokenRange",
    "TunedSteering",
    "__version__",
    "extract_activations",
    "extract_vectors",
    "fit_condition",
    "get_model_config",
    "infer_model_config",
    "load_pairs",
    "steer",
    "steering_of",
    "tune",
    "unsteered",
]

_HOMES = {
    "datasets": ("load_pairs",),
    "errors": ("NotSteeredError", "SteeringError"),
    "extraction": ("extract_vectors",),
    "model.activations": ("ActivationCache", "ActivationHook", "extract_activations"),
    "model.configs": ("MODEL_CONFIGS", "ModelConfig", "get_model_config", "infer_model_config"),
    "steering": (
        "Ablate",
        "ActivationInjector",
        "AfterMarker",
        "Clamp",
        "LinearDecay",
        "MultiVectorInjector",
        "NotSteeringWarning",
        "Rotate",
        "SteeredModel",
        "StopAfter",
        "TokenRange",
        "fit_condition",
        "steer",
        "steering_of",
        "unsteered",
    ),
    "tuning": ("TunedSteering", "tune"),
    "vectors": ("SteeringVector", "SteeringVectorSet"),
}


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
