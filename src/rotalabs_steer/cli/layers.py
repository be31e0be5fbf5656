"""Decoder layers as they are typed: `--layers 8-10,14`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

ActingLayers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        "--layer",
        "-l",
        metavar="LAYERS",
        help="0-based layers that act together, such as 14 or 8-10,14, instead of the set's acting layers.",
    ),
]

_MOST = 10_000


def parse_layers(text: str) -> list[int]:
    """Layers written as numbers and ranges: `3,10-12` is 3, 10, 11, 12.

    Raises:
        OptionError: the text is not of that form.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = first.isdecimal() and (not dash or last.isdecimal())
        if not numbers or int(last or first) < int(first) or int(last or first) >= _MOST:
            raise OptionError(f"--layers {text!r}: {part.strip()!r} is neither a layer nor a range such as 10-12.")
        layers += range(int(first), int(last or first) + 1)
    return layers


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
