"""Activation steering of language models: make steering vectors, apply them, measure what they do.

import rotalabs_steer as rs

tuned = rs.tune(model, tokenizer, "pairs.jsonl", "tuned/calm")
with rs.steer(model, "tuned/calm=0.8"):
    model.generate(**inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotalabs_steer.acting import NotSteeringWarning
    from rotalabs_steer.active_steering import steering_of
    from rotalabs_steer.attachment import unsteered
    from rotalabs_steer.conditions import fit_condition
    from rotalabs_steer.datasets import load_pairs
    from rotalabs_steer.errors import NotSteeredError, SteeringError
    from rotalabs_steer.evaluation import TunedSteering, tune
    from rotalabs_steer.extraction import extract_vectors
    from rotalabs_steer.hooks import ActivationCache, ActivationHook, extract_activations
    from rotalabs_steer.injection import ActivationInjector, MultiVectorInjector
    from rotalabs_steer.interventions import Ablate, Clamp, Rotate
    from rotalabs_steer.models import MODEL_CONFIGS, ModelConfig, get_model_config, infer_model_config
    from rotalabs_steer.positions import AfterMarker, TokenRange
    from rotalabs_steer.schedules import LinearDecay, StopAfter
    from rotalabs_steer.steered_model import SteeredModel
    from rotalabs_steer.steering import steer
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
    "acting": ("NotSteeringWarning",),
    "active_steering": ("steering_of",),
    "attachment": ("unsteered",),
    "conditions": ("fit_condition",),
    "datasets": ("load_pairs",),
    "errors": ("NotSteeredError", "SteeringError"),
    "evaluation": ("TunedSteering", "tune"),
    "extraction": ("extract_vectors",),
    "hooks": ("ActivationCache", "ActivationHook", "extract_activations"),
    "injection": ("ActivationInjector", "MultiVectorInjector"),
    "interventions": ("Ablate", "Clamp", "Rotate"),
    "models": ("MODEL_CONFIGS", "ModelConfig", "get_model_config", "infer_model_config"),
    "positions": ("AfterMarker", "TokenRange"),
    "schedules": ("LinearDecay", "StopAfter"),
    "steered_model": ("SteeredModel",),
    "steering": ("steer",),
    "vectors": ("SteeringVector", "SteeringVectorSet"),
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import rotalabs_steer` does not import torch."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"rotalabs_steer.{module}"), name)
    raise AttributeError(f"module 'rotalabs_steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
