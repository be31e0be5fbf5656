"""Which vectors act on a verb's model, and how strongly: `--steer FOLDER=STRENGTH`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rotalabs_steer.errors import OptionError
from rotalabs_steer.ordinary_numbers import as_real

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rotalabs_steer.vectors import SteeringVectorSet

Steer = Annotated[
    list[str] | None,
    typer.Option(
        metavar="VECTORS[=STRENGTH]",
        help="A vector set and its strength, 1 by default. A set is a path, or OWNER/NAME or OWNER/NAME@REVISION on "
        "the Hub. Repeatable.",
    ),
]
Scope = Annotated[str, typer.Option(help="Which tokens are steered: all, first, last, prompt or generated.")]
Intervention = Annotated[str, typer.Option(help="add, add_keeping_norm, ablate, clamp or rotate.")]


def parse_steer(options: Sequence[str] | None) -> dict[str, float]:
    """Strength by place of the vectors.

    Raises:
        OptionError: a strength is not a finite number, or vectors are named twice.
    """
    parsed: dict[str, float] = {}
    for option in options or ():
        place, strength = _place_and_strength(option)
        if place in parsed:
            raise OptionError(f"--steer names {place} twice. Give it one strength.")
        parsed[place] = strength
    return parsed


def _place_and_strength(option: str) -> tuple[str, float]:
    place, equals, text = option.rpartition("=")
    if not equals or (Path(option).exists() and not Path(place).exists()):  # a path may have an = in it
        return option, 1.0
    try:
        strength = as_real(float(text))
    except ValueError:
        strength = None
    if strength is None or not place:
        raise OptionError(f"--steer {option!r} is not of the form VECTORS=STRENGTH, as in tuned/humor=0.5.")
    return place, strength


def check_intervention(name: str) -> None:
    """Refuses a name that no intervention has, before anything is loaded."""
    from rotalabs_steer.interventions import INTERVENTIONS

    if name not in INTERVENTIONS:
        raise OptionError(f"Unknown intervention {name!r}. Use one of: {', '.join(INTERVENTIONS)}.")


def load_sets(steer: dict[str, float]) -> tuple[dict[str, SteeringVectorSet], dict[str, float]]:
    """The sets of `parse_steer` and their strengths, both by behaviour. Says which of them do not steer.

    Raises:
        OptionError: two sets are of one behaviour.
        FileNotFoundError, FileFormatError: see `load_vectors`.
    """
    from rotalabs_steer.integrations.vector_sources import load_vectors

    sets: dict[str, SteeringVectorSet] = {}
    strengths: dict[str, float] = {}
    for place, strength in steer.items():
        vectors = load_vectors(place)
        if vectors.behavior in sets:
            raise OptionError(f"Two of the vector sets are of {vectors.behavior!r}. Name one of them.")
        sets[vectors.behavior], strengths[vectors.behavior] = vectors, strength
    say_not_steering(sets.values())
    return sets, strengths


def say_not_steering(sets: Iterable[SteeringVectorSet]) -> None:
    """A line on standard error for each set of which tuning found that it does not steer."""
    from rotalabs_steer.acting import not_steering

    for sentence in not_steering(sets):
        Console(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)
