"""What a verb works with, as its first line on standard error and in its JSON: the model, and what steers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.cli.layers import name_layers
from rotalabs_steer.cli.loading import SAMPLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from rotalabs_steer.vectors import SteeringVectorSet


def model_facts(name: str, model: nn.Module) -> dict[str, Any]:
    """Name, device and dtype of a model, as JSON has them."""
    from rotalabs_steer.model.decoder import input_device
    from rotalabs_steer.sample_model import SAMPLE_MODEL

    return {
        "model": SAMPLE_MODEL if name == SAMPLE else name,
        "device": str(input_device(model)),
        "dtype": str(getattr(model, "dtype", "unknown")).removeprefix("torch."),
    }


def vector_facts(sets: Mapping[str, SteeringVectorSet], strengths: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Behaviour, acting layers and strength of each set, as JSON has them."""
    return [
        {"behavior": behavior, "layers": found.acting_layers, "strength": strengths[behavior]}
        for behavior, found in sets.items()
    ]


def name_model(facts: Mapping[str, Any]) -> str:
    """As in `SmolLM2-135M-Instruct on cpu, float32`."""
    return f"{facts['model']} on {facts['device']}, {facts['dtype']}"


def name_vectors(vectors: list[dict[str, Any]], scope: str) -> str:
    """As in `formality: layer 16, strength −1, scope all`."""
    if not vectors:
        return "not steered"
    return "; ".join(
        f"{one['behavior']}: {name_layers(one['layers'])}, strength {number(one['strength'])}, scope {scope}"
        for one in vectors
    )


def number(value: float) -> str:
    """A number with a minus sign instead of a hyphen."""
    return f"{value:g}".replace("-", "−")
