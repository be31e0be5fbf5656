"""Which vectors act on a verb's model, where and how strongly: `--steer VECTORS:LAYERS=STRENGTH`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rotalabs_steer.cli.consoles import notes
from rotalabs_steer.cli.layers import parse_layers
from rotalabs_steer.errors import OptionError
from rotalabs_steer.ordinary_numbers import as_real

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rotalabs_steer.vectors import SteeringVectorSet

Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer",
        "-s",
        metavar="VECTORS[:LAYERS][=STRENGTH]",
        help="A vector set, its layers (by default its acting layers) and its strength (by default 1), as in "
        "tuned/humor:14=0.8. A set is a path, or OWNER/NAME or OWNER/NAME@REVISION on the Hub. Repeatable.",
    ),
]
Vectors = Annotated[
    str,
    typer.Argument(
        metavar="VECTORS[:LAYERS][=STRENGTH]",
        help="A vector set: a path, or OWNER/NAME or OWNER/NAME@REVISION on the Hub. Layers and strength can be named "
        "here or by options.",
    ),
]
Scope = Annotated[str, typer.Option(help="Which tokens are steered: all, first, last, prompt or generated.")]
Intervention = Annotated[str, typer.Option(help="add, add_keeping_norm, ablate, clamp or rotate.")]


@dataclass(frozen=True)
class NamedVectors:
    """Vectors as a user names them.

    Attributes:
        place: a path, or an id on the Hugging Face Hub.
        layers: the layers that are to act; None for the set's acting layers.
        strength: None where the text names none.
    """

    place: str
    layers: tuple[int, ...] | None = None
    strength: float | None = None

    def load(self) -> SteeringVectorSet:
        """The set, in which the named layers act.

        Raises:
            LayerError: the set has no vector at one of the layers.
            FileNotFoundError, FileFormatError: see `load_vectors`.
        """
        from rotalabs_steer.integrations.vector_sources import load_vectors

        found = load_vectors(self.place)
        return found if self.layers is None else found.with_acting_layers(self.layers)


def parse_vectors(text: str, option: str = "") -> NamedVectors:
    """Vectors, layers and strength from `VECTORS[:LAYERS][=STRENGTH]`.

    A path that exists is taken as it is, whatever signs are in it.

    Args:
        option: the option that the text was given with, for an error.

    Raises:
        OptionError: the strength is not a finite number, or the layers are not numbers and ranges.
    """
    place, strength = _split(text, "=")
    place, layers = _split(place, ":") if re.search(r":[\d,\s-]*$", place) else (place, None)
    number = None
    if strength is not None:
        try:
            number = as_real(float(strength))
        except ValueError:
            number = None
    if not place or (strength is not None and number is None):
        raise OptionError(
            f"{option} {text!r} is not of the form VECTORS=STRENGTH, as in tuned/humor=0.5, or "
            "VECTORS:LAYERS=STRENGTH, as in tuned/humor:14=0.5.".lstrip()
        )
    chosen = None if layers is None else tuple(dict.fromkeys(parse_layers(layers)))
    return NamedVectors(place, chosen, number)


def _split(text: str, sign: str) -> tuple[str, str | None]:
    """What stands before and after the last sign; None after it where the text is a path that has the sign in it."""
    before, found, after = text.rpartition(sign)
    if not found or (Path(text).exists() and not Path(before).exists()):
        return text, None
    return before, after


def parse_steer(options: Sequence[str] | None) -> list[NamedVectors]:
    """What each `--steer` names.

    Raises:
        OptionError: as in `parse_vectors`, or vectors are named twice.
    """
    parsed = [parse_vectors(option, "--steer") for option in options or ()]
    places = [named.place for named in parsed]
    for place in places:
        if places.count(place) > 1:
            raise OptionError(f"--steer names {place} twice. Give it one strength.")
    return parsed


def one_strength(named: NamedVectors, strength: float | None) -> float:
    """The strength that VECTORS or --strength names, else 1.

    Raises:
        OptionError: both name one, or it is not a finite number.
    """
    from rotalabs_steer.plans import check_strength

    if named.strength is not None and strength is not None:
        raise OptionError(
            f"VECTORS names the strength {named.strength:g} and --strength the strength {strength:g}. Give one of them."
        )
    given = named.strength if strength is None else strength
    return 1.0 if given is None else float(check_strength(given))  # type: ignore[arg-type]


def layers_to_act(named: NamedVectors, layers: list[int] | None) -> NamedVectors:
    """The same vectors, at the layers of --layers if there are any.

    Raises:
        OptionError: VECTORS names layers, too.
    """
    if layers is None:
        return named
    if named.layers is not None:
        raise OptionError("VECTORS names layers and --layers does, too. Give one of them.")
    return NamedVectors(named.place, tuple(layers), named.strength)


def check_intervention(name: str) -> None:
    """Refuses a name that no intervention has, before anything is loaded."""
    from rotalabs_steer.interventions import INTERVENTIONS

    if name not in INTERVENTIONS:
        raise OptionError(f"Unknown intervention {name!r}. Use one of: {', '.join(INTERVENTIONS)}.")


def load_sets(steer: Sequence[NamedVectors]) -> tuple[dict[str, SteeringVectorSet], dict[str, float]]:
    """The sets of `parse_steer` and their strengths, both by behaviour. Says which of them do not steer.

    Raises:
        OptionError: two sets are of one behaviour.
        LayerError, FileNotFoundError, FileFormatError: as in `NamedVectors.load`.
    """
    sets: dict[str, SteeringVectorSet] = {}
    strengths: dict[str, float] = {}
    for named in steer:
        vectors = named.load()
        if vectors.behavior in sets:
            raise OptionError(f"Two of the vector sets are of {vectors.behavior!r}. Name one of them.")
        sets[vectors.behavior] = vectors
        strengths[vectors.behavior] = 1.0 if named.strength is None else named.strength
    say_not_steering(sets.values())
    return sets, strengths


def say_not_steering(sets: Iterable[SteeringVectorSet]) -> None:
    """A line on standard error for each set of which tuning found that it does not steer."""
    from rotalabs_steer.acting import not_steering

    for sentence in not_steering(sets):
        notes().print(sentence)
