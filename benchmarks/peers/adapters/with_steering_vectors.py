"""steering-vectors, with batches instead of its default of one pair at a time."""

from __future__ import annotations

from typing import Any

from steering_vectors import train_steering_vector

BATCH_SIZE = 16


def extract(model: Any, tokenizer: Any, pairs: list[tuple[str, str]], layers: list[int]) -> dict[int, Any]:
    return train_steering_vector(model, tokenizer, pairs, layers=layers, batch_size=BATCH_SIZE).layer_activations
