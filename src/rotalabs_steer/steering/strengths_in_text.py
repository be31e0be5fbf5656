"""Parses strings that name vectors, layers and strengths, such as `tuned/calm=0.8,me/humor@v2:14-16=-0.5`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rotalabs_steer.arguments import as_real
from rotalabs_steer.errors import OptionError

_COMMA = re.compile(r",(?!\s*\d[\d\s-]*(?:[=,]|$))")
"""A comma between two vectors. A comma between two layers, as in `calm:8,10`, has a number behind it."""
_LAYERS = re.compile(r"(.+):([\d\s,-]*)")
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class NamedVectors:
    """The vectors that a string names.

    Attributes:
        place: a path, or `owner/name[@revision]` on the Hugging Face Hub.
        layers: the layers at which they act; None for the acting layers of the set.
        strength: None if the string does not name a strength.
    """

    place: str
    layers: tuple[int, ...] | None = None
    strength: float | None = None

    @property
    def exists(self) -> bool:
        """Whether there are files at the place."""
        if not self.place:  # pathlib takes an empty path for the current folder
            return False
        path = Path(self.place).expanduser()
        return path.exists() or (bool(path.name) and path.with_name(f"{path.name}.json").exists())


def parse_several(text: str) -> list[NamedVectors]:
    """Parses one or several strings of the form `VECTORS[:LAYERS][=STRENGTH]`, with commas between them.

    Raises:
        OptionError: as in `parse_vectors`, or vectors are named twice.
    """
    parts = _COMMA.split(text)
    found: list[NamedVectors] = []
    while parts:  # the longest part that is an existing path comes first, because a path may contain commas
        length = next((n for n in range(len(parts), 1, -1) if _existing(",".join(parts[:n]))), 1)
        found.append(parse_vectors(",".join(parts[:length])))
        parts = parts[length:]
    places = [named.place for named in found]
    for place in places:
        if places.count(place) > 1:
            raise OptionError(f"{text!r:.200} names {place} twice. Give it one strength.")
    return found


def parse_vectors(text: str) -> NamedVectors:
    """Parses a string of the form `VECTORS[:LAYERS][=STRENGTH]`.

    A path may contain colons and equals signs. It is taken as a whole if there are files at it.

    Raises:
        OptionError: the strength is not a finite number, the layers are not numbers and ranges, no place is named, or
            the string can mean either of two paths that exist.
    """
    text = text.strip()
    existing = _existing(text)
    if len(existing) > 1:
        raise OptionError(
            f"{text!r:.200} can mean {' or '.join(named.place for named in existing)}, and there are files at both. "
            f"Write '{text}=1' for the first, or rename it to use the second."
        )
    if existing:
        return existing[0]
    place, equals, strength = text.rpartition("=")
    if not text or (equals and (not place or _number(strength) is None)):
        raise OptionError(
            f"{text!r:.200} is not of the form VECTORS=STRENGTH or "
            "VECTORS:LAYERS=STRENGTH, as in tuned/humor=0.5 or tuned/humor:14=0.5. A strength is a finite number with "
            "a decimal point."
        )
    return _readings(text)[-1]


def parse_layers(text: str) -> tuple[int, ...]:
    """Parses layers written as numbers and ranges: `3,10-12` is 3, 10, 11, 12. Each layer is returned once.

    Raises:
        OptionError: the string is not of that form.
    """
    layers: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < _MOST_LAYERS:
            raise OptionError(
                f"Layers {text!r:.80}: {part.strip()!r:.80} is neither a layer nor a range such as 10-12."
            )
        layers += range(first, last + 1)
    return tuple(dict.fromkeys(layers))


def parse_numbers(text: str) -> dict[str, float]:
    """Parses numbers by name: `formality=1,refusal=-0.5`, or `formality:1;refusal:-0.5` for tools that use commas and
    equals signs themselves.

    Raises:
        OptionError: a part is not of that form, a number is not finite, or a name occurs twice.
    """
    numbers: dict[str, float] = {}
    for part in re.split("[,;]", text):
        found = re.fullmatch(r"(.+)[=:](.+)", part.strip())
        number = None if found is None else _number(found[2])
        if found is None or number is None:
            raise OptionError(f"{part!r:.80} in {text!r:.200} is not of the form NAME=NUMBER, as in humor=0.5.")
        name = found[1].strip()
        if name in numbers:
            raise OptionError(f"{text!r:.200} names {name!r} twice. Give it one number.")
        numbers[name] = number
    return numbers


def _readings(text: str) -> list[NamedVectors]:
    """Everything that a string can mean, from a plain path to a place with layers and a strength."""
    readings = [NamedVectors(text)]
    place, equals, number = text.rpartition("=")
    strength = _number(number)
    if equals and place and strength is not None:
        readings.append(NamedVectors(place.rstrip(), None, strength))
    for reading in tuple(readings):
        found = _LAYERS.fullmatch(reading.place)
        if found is not None:
            readings.append(NamedVectors(found[1], parse_layers(found[2]), reading.strength))
    return readings


def _existing(text: str) -> list[NamedVectors]:
    return [named for named in _readings(text.strip()) if named.exists]


def _number(text: str) -> float | None:
    try:
        return as_real(float(text))
    except ValueError:
        return None
