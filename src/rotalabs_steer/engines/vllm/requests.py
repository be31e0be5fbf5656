"""Reads the steering that a client asks for: behaviours, strengths, scope and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rotalabs_steer.arguments import as_integer, as_real, plain_value
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.scopes import SCOPES

DEFAULT_MAX_STRENGTH = 10.0
"""The largest strength a request may ask for, unless the server sets another."""

_MOST_BEHAVIORS = 64
_KEYS = ("behaviors", "scope", "layers")


@dataclass(frozen=True)
class SteeringRequest:
    """Behaviours with their strengths, and where they act.

    Attributes:
        behaviors: names and strengths, sorted by name, without those of strength 0.
        scope: one of `scopes.SCOPES`.
        layers: names of behaviours and the layers at which they act. Other behaviours act at their set's acting layers.
    """

    behaviors: tuple[tuple[str, float], ...]
    scope: str = "all"
    layers: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @classmethod
    def parse(cls, value: Any, max_strength: float = DEFAULT_MAX_STRENGTH) -> SteeringRequest:
        """Reads the `steering` of a request.

        Args:
            value: `{"behaviors": {"formality": 0.8}, "scope": "all", "layers": [14]}`, where scope and layers may be
                left out and layers may also be given by behaviour; or just `{"formality": 0.8}`.

        Raises:
            OptionError: the value has another form, or the absolute value of a strength is above `max_strength`.
        """
        if not isinstance(value, Mapping):
            raise OptionError(
                f'steering is {_shown(value)}; it must be an object such as {{"behaviors": {{"formality": 0.8}}}}.'
            )
        if not isinstance(value.get("behaviors"), Mapping):  # the short form, in which any key may be a behaviour
            value = {"behaviors": value}
        unknown = sorted(str(key) for key in value if key not in _KEYS)
        if unknown:
            raise OptionError(f"steering has no {', '.join(map(_shown, unknown))}; it has {', '.join(_KEYS)}.")
        given = value["behaviors"]
        if not 0 < len(given) <= _MOST_BEHAVIORS:
            raise OptionError(f"steering names {len(given)} behaviours; it must name 1 to {_MOST_BEHAVIORS}.")
        strengths = {_name(name): _strength(name, strength, max_strength) for name, strength in given.items()}
        scope = value.get("scope", "all")
        if not isinstance(scope, str) or scope not in SCOPES:
            raise OptionError(f"steering has scope {_shown(scope)}; use one of: {', '.join(SCOPES)}.")
        layers = _layers(value.get("layers"), strengths)
        return cls(tuple(sorted((n, s) for n, s in strengths.items() if s)), scope, tuple(sorted(layers.items())))


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise OptionError(f"steering names a behaviour by {_shown(name)}; it must be a string.")
    return name


def _strength(name: str, strength: Any, most: float) -> float:
    number = as_real(strength)
    if number is None or abs(number) > most:
        raise OptionError(
            f"The strength of {_shown(name)} is {_shown(strength)}; it must be a number from {-most:g} to {most:g}."
        )
    return number


def _layers(value: Any, behaviors: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
    if value is None:
        return {}
    by_behavior = value if isinstance(value, Mapping) else dict.fromkeys(behaviors, value)
    unknown = [name for name in by_behavior if name not in behaviors]
    if unknown:
        raise OptionError(f"steering gives layers for {_shown(unknown[0])}, which is not among its behaviours.")
    return {name: _indices(layers) for name, layers in by_behavior.items()}


def _indices(layers: Any) -> tuple[int, ...]:
    value = plain_value(layers)
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    indices = [number for number in map(as_integer, given) if number is not None and number >= 0]
    if not indices or len(indices) < len(given):
        raise OptionError(f"steering has layers {_shown(layers)}; give 0-based decoder layers, as in [12, 14].")
    if len(set(indices)) < len(indices):
        raise OptionError(f"steering has layers {_shown(layers)}, which name a layer twice.")
    return tuple(sorted(indices))


def _shown(value: Any) -> str:
    """A value in at most 80 characters, for an error: a client may send values of any length."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "an enormous number"
    return text if len(text) <= 80 else f"{text[:77]}..."
