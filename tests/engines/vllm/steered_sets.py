"""Vector sets that the engine tests share, with random directions of a length that changes what SmolLM2 writes."""

from __future__ import annotations

import torch

from rotalabs_steer import SteeringVector, SteeringVectorSet
from rotalabs_steer.engines.vllm.catalogue import ServedModel

FINGERPRINT = {"model_type": "llama", "num_layers": 30, "hidden_size": 8, "vocab_size": 100}
TINY = ServedModel("a/model", FINGERPRINT, torch.float32)
"""A model as the pure tests imagine it."""


def random_set(behavior, layers, seed, hidden=576, norm=45.0, model_name="random", **metadata):
    generator = torch.Generator().manual_seed(seed)
    vectors = []
    for layer in layers:
        direction = torch.randn(hidden, generator=generator)
        vectors.append(SteeringVector(behavior, layer, direction * norm / direction.norm(), model_name))
    return SteeringVectorSet(behavior, vectors, metadata)


def save_sets(folder, **options):
    """Three behaviours at different layers; `calm` was calibrated by tuning."""
    sets = [
        random_set("warm", (10, 15, 20), 1, chosen_layer=15, **options),
        random_set("cool", (12, 15), 2, chosen_layer=15, **options),
        random_set("calm", (20,), 3, calibration={"budget_kl": 0.2}, **options),
    ]
    for vectors in sets:
        vectors.save(folder / vectors.behavior)
    return {vectors.behavior: vectors for vectors in sets}
