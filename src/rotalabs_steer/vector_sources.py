"""Vector sets from the sources that a user can name: a path, a repository on the Hugging Face Hub, or an object."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from rotalabs_steer.errors import VectorError
from rotalabs_steer.files.formats import find_sets
from rotalabs_steer.files.hub import find_vectors
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from pathlib import Path


class HasVectors(Protocol):
    """The result of tuning, or any other object whose `vectors` are a set."""

    @property
    def vectors(self) -> SteeringVectorSet:
        """The set."""


Source = str | os.PathLike[str] | SteeringVector | SteeringVectorSet | HasVectors
"""What names or holds one vector set."""


def load_vectors(source: Source) -> SteeringVectorSet:
    """Loads one vector set. A single vector becomes a set of one.

    Args:
        source: a path, a repository `owner/name[@revision]` on the Hugging Face Hub, a vector, a set, or the result of
            tuning.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
        FileFormatError: the files are damaged, unsafe or hold no vectors.
        OptionError: `source` is something else.
        VectorError: the path is a folder of several sets.
    """
    if isinstance(source, SteeringVectorSet):
        return source
    vectors = getattr(source, "vectors", None)
    if isinstance(vectors, SteeringVectorSet):
        return vectors
    if isinstance(source, SteeringVector):
        return SteeringVectorSet(source.behavior, [source])
    path = find_vectors(source)  # type: ignore[arg-type]  # it refuses whatever is not a name
    if not path.is_dir() and (path.suffix in {".json", ".pt"} or not path.exists()):
        return load_vectors(SteeringVector.load(path))
    places = find_sets(path) if path.is_dir() else []
    if places and path not in places:
        names = ", ".join(str(place) for place in places[:20])
        raise VectorError(f"{source} is a folder of vector sets, not a set. Name the ones that you mean: {names}.")
    return SteeringVectorSet.load(path)


def load_vector_sets(source: str | os.PathLike[str]) -> dict[str, SteeringVectorSet]:
    """All sets at a path, by behaviour: one set, one vector, or every set in a folder of sets.

    Raises:
        VectorError: two sets are of one behaviour, or the folder holds no set.
    """
    sets: dict[str, SteeringVectorSet] = {}
    for place in set_places(source):
        found = load_vectors(place)
        if found.behavior in sets:
            raise VectorError(f"{source} holds two sets of {found.behavior!r}. Name the folder of the one you mean.")
        sets[found.behavior] = found
    return sets


def set_places(source: str | os.PathLike[str]) -> list[Path]:
    """The paths of the sets that `load_vector_sets` reads, in its order.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
        VectorError: the folder holds no set.
    """
    places = find_sets(find_vectors(source))
    if not places:
        raise VectorError(f"{source} is a folder without vector sets. Save some there: vectors.save('{source}/NAME').")
    return places
