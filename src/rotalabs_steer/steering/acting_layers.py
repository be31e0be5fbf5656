"""Which vectors act when an injector or an engine is given vectors and whole sets."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from rotalabs_steer.errors import SteeringWarning, VectorError
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

Vectors = SteeringVector | SteeringVectorSet
"""A vector acts at its layer, a set at its acting layers."""
_KINDS = (SteeringVector, SteeringVectorSet)


class NotSteeringWarning(SteeringWarning):
    """Tuning found that a vector set does not steer the model."""


def acting_vectors(given: Vectors | Iterable[Vectors]) -> list[SteeringVector]:
    """The vectors that act: each vector that is given, and those at the acting layers of each set.

    Raises:
        VectorError: nothing is given, or something other than vectors and sets; or a set is empty.
    """
    listed = isinstance(given, Iterable) and not isinstance(given, (*_KINDS, str, Mapping, torch.Tensor))
    vectors: list[SteeringVector] = []
    for part in given if listed else [given]:  # type: ignore[union-attr]
        if isinstance(part, SteeringVectorSet):
            vectors += part.acting
        elif isinstance(part, SteeringVector):
            vectors.append(part)
        else:
            raise _not_vectors(part)
    if not vectors:
        raise VectorError("No vector given: nothing would be steered.")
    return vectors


def sets_by_behavior(given: Mapping[str, Vectors]) -> dict[str, SteeringVectorSet]:
    """The vector sets by behaviour; a single vector is a set of one.

    Raises:
        VectorError: nothing is given, or something other than sets and vectors by behaviour.
    """
    if not isinstance(given, Mapping):
        if isinstance(given, _KINDS):
            raise VectorError(
                f"The vectors of {given.behavior!r} were given without a name. Give vector sets by behaviour: "
                f"{{{given.behavior!r}: vectors}}."
            )
        raise VectorError(f"Vector sets are given by behaviour, as in {{'calm': vectors}}, got {_short(given)}.")
    if not given:
        raise VectorError("No vector sets given: nothing would be steered.")
    sets: dict[str, SteeringVectorSet] = {}
    for behavior, vectors in given.items():
        if isinstance(vectors, SteeringVectorSet):
            sets[behavior] = vectors
        elif isinstance(vectors, SteeringVector):
            sets[behavior] = SteeringVectorSet(vectors.behavior, [vectors])
        else:
            raise _not_vectors(vectors)
    return sets


def at_layer(vectors: SteeringVectorSet, layer: int | None) -> SteeringVectorSet:
    """The set with `layer` as its only acting layer; the set itself if `layer` is None.

    Raises:
        LayerError: the set has no vector at that layer.
        VectorError: it is not a set.
    """
    if not isinstance(vectors, SteeringVectorSet):
        raise _not_vectors(vectors)
    return vectors if layer is None else vectors.with_acting_layers([layer])


def not_steering(sets: Iterable[SteeringVectorSet]) -> list[str]:
    """A sentence about each set that, as tuning found, does not steer."""
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


def _not_vectors(value: Any) -> VectorError:
    """The error for a value that is not vectors, with a hint at how to get vectors from it."""
    hint = "Give SteeringVectors, or a SteeringVectorSet."
    if isinstance(value, (str, os.PathLike)):
        hint = f"Load the vectors first: SteeringVectorSet.load({os.fspath(value)!r})."
    elif isinstance(value, torch.Tensor):
        hint = "Say what it stands for: SteeringVector(behavior, layer_index, tensor, model_name)."
    elif isinstance(value, Mapping):
        hint = "Vector sets by behaviour are for MultiVectorInjector; here, give the vectors themselves."
    elif isinstance(getattr(value, "vectors", None), SteeringVectorSet):
        hint = "Give its vectors: tuned.vectors."
    return VectorError(f"{_short(value)} is neither a SteeringVector nor a SteeringVectorSet. {hint}")


def _short(value: Any) -> str:
    plain = value is None or isinstance(value, (str, os.PathLike, int, float))
    return f"{value!r:.80}" if plain else f"A {type(value).__name__}"
