"""The vectors that a verb is told to steer with: `VECTORS:LAYERS=STRENGTH`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rotalabs_steer.cli.consoles import notes
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.strengths_in_text import NamedVectors, parse_vectors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rotalabs_steer.vectors import SteeringVectorSet


def load_named(named: NamedVectors) -> SteeringVectorSet:
    """The set that is named, in which the named layers act.

    Raises:
        LayerError: the set has no vector at one of the layers.
        FileNotFoundError, FileFormatError: see `load_vectors`.
    """
    from rotalabs_steer.vector_sources import load_vectors

    found = load_vectors(named.place)
    return found if named.layers is None else found.with_acting_layers(named.layers)


def parse_steer(options: Sequence[str] | None) -> list[NamedVectors]:
    """What each `--steer` names.

    Raises:
        OptionError: as in `parse_vectors`, or vectors are named twice.
    """
    parsed = [parse_vectors(option) for option in options or ()]
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
    from rotalabs_steer.steering.strengths import check_strength

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


def load_sets(steer: Sequence[NamedVectors]) -> tuple[dict[str, SteeringVectorSet], dict[str, float]]:
    """The sets of `parse_steer` and their strengths, both by behaviour. Says which of them do not steer.

    Raises:
        OptionError: two sets are of one behaviour.
        LayerError, FileNotFoundError, FileFormatError: as in `load_named`.
    """
    sets: dict[str, SteeringVectorSet] = {}
    strengths: dict[str, float] = {}
    for named in steer:
        vectors = load_named(named)
        if vectors.behavior in sets:
            raise OptionError(f"Two of the vector sets are of {vectors.behavior!r}. Name one of them.")
        sets[vectors.behavior] = vectors
        strengths[vectors.behavior] = 1.0 if named.strength is None else named.strength
    say_not_steering(sets.values())
    return sets, strengths


def say_not_steering(sets: Iterable[SteeringVectorSet]) -> None:
    """A line on standard error for each set of which tuning found that it does not steer."""
    from rotalabs_steer.steering.acting_layers import not_steering

    for sentence in not_steering(sets):
        notes().print(sentence)
