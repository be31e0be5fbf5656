"""Decoder layers as they are typed and shown: `--layers 8-10,14`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.steering.strengths_in_text import parse_layers

if TYPE_CHECKING:
    from collections.abc import Sequence


def layers_of(options: Sequence[str] | None) -> list[int] | None:
    """The layers that one option or several name, each once; None where there is no option."""
    if not options:
        return None
    return list(dict.fromkeys(layer for text in options for layer in parse_layers(text)))


def name_layers(layers: Sequence[int]) -> str:
    """Layers in words: `layer 14`, `layers 8, 10`, `layers 8-10`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]}-{layers[-1]}"
    return f"layers {', '.join(map(str, layers))}" if layers else "no layers"
