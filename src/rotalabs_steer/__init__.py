"""Activation steering of language models: extract steering vectors, apply them, measure what they do.

from rotalabs_steer import ActivationInjector
from rotalabs_steer.datasets import load_formality_pairs
from rotalabs_steer.extraction import extract_caa_vectors

vectors = extract_caa_vectors(model, tokenizer, load_formality_pairs())
with ActivationInjector(model, [vectors.get_best()], strength=1.0):
    model.generate(**inputs)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotalabs_steer.active_steering import steering_of
    from rotalabs_steer.attachment import unsteered
    from rotalabs_steer.hooks import ActivationCache, ActivationHook, extract_activations
    from rotalabs_steer.injection import ActivationInjector, MultiVectorInjector
    from rotalabs_steer.models import MODEL_CONFIGS, ModelConfig, get_model_config, infer_model_config
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

__version__ = "2.0.0.dev0"

__all__ = [
    "MODEL_CONFIGS",
    "ActivationCache",
    "ActivationHook",
    "ActivationInjector",
    "ModelConfig",
    "MultiVectorInjector",
    "SteeringVector",
    "SteeringVectorSet",
    "__version__",
    "extract_activations",
    "get_model_config",
    "infer_model_config",
    "steering_of",
    "unsteered",
]

_HOMES = {
    "active_steering": ("steering_of",),
    "attachment": ("unsteered",),
    "hooks": ("ActivationCache", "ActivationHook", "extract_activations"),
    "injection": ("ActivationInjector", "MultiVectorInjector"),
    "models": ("MODEL_CONFIGS", "ModelConfig", "get_model_config", "infer_model_config"),
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
