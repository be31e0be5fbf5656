"""Which vectors act, where vectors and whole sets are given to an injector or an engine."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from rotalabs_steer.errors import SteeringWarning, VectorError
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

Vectors = SteeringVector | SteeringVectorSet
"""What can act: a vector at its layer, a set at its acting layers."""


class NotSteeringWarning(SteeringWarning):
    """Tuning found that a vector set does not steer the model."""


def acting_vectors(given: Vectors | Iterable[Vectors]) -> list[SteeringVector]:
    """The vectors that act: each vector given, and of each set those of its acting layers.

    Raises:
        VectorError: nothing is given, or something else than vectors and sets; or a set is empty.
    """
    one = isinstance(given, SteeringVectorSet | str) or not isinstance(given, Iterable)
    parts: Iterable[object] = [given] if one else given  # type: ignore[assignment]
    vectors: list[SteeringVector] = []
    for part in parts:
        if isinstance(part, SteeringVectorSet):
            vectors += part.acting
        elif isinstance(part, SteeringVector):
            vectors.append(part)
        else:
            raise VectorError(
                f"{part!r:.80} is neither a SteeringVector nor a SteeringVectorSet. Give vectors, or a set; load saved "
                "ones with SteeringVectorSet.load."
            )
    if not vectors:
        raise VectorError("No vector given: nothing would be steered.")
    return vectors


def at_layer(vectors: SteeringVectorSet, layer: int | None) -> SteeringVectorSet:
    """The set, of which only one layer acts; the set as it is where `layer` is None.

    Raises:
        LayerError: the set has no vector at that layer.
        VectorError: it is not a set.
    """
    if not isinstance(vectors, SteeringVectorSet):
        raise VectorError(
            f"{vectors!r:.80} is not a SteeringVectorSet. Make one of vectors: SteeringVectorSet(behavior, vectors)."
        )
    return vectors if layer is None else vectors.with_acting_layers([layer])


def not_steering(sets: Iterable[SteeringVectorSet]) -> list[str]:
    """A sentence about each set of which tuning found that it does not steer."""
    return [
        f"Tuning found that the vectors of {vectors.behavior!r} do not steer {vectors.model_name}: its test showed no "
        "effect beyond chance."
        for vectors in sets
        if vectors.metadata.get("steers") is False
    ]


def warn_not_steering(sets: Iterable[SteeringVectorSet], stacklevel: int = 3) -> None:
    """Gives the same sentences as `NotSteeringWarning`s."""
    for sentence in not_steering(sets):
        warnings.warn(sentence, NotSteeringWarning, stacklevel=stacklevel)
