"""Vector sets from wherever a user has them, and a model that is steered by them from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rotalabs_steer.acting import Vectors, warn_not_steering
from rotalabs_steer.errors import OptionError, VectorError
from rotalabs_steer.files.formats import find_sets
from rotalabs_steer.files.hub import find_vectors
from rotalabs_steer.injection import MultiVectorInjector
from rotalabs_steer.ordinary_numbers import as_real
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from torch import nn

    from rotalabs_steer.positions import Scope


def load_vectors(source: str | os.PathLike[str] | Vectors) -> SteeringVectorSet:
    """The vector set at a path, or of a repository `owner/name[@revision]` on the Hugging Face Hub; a single vector
    (at a path or in hand) as a set of one.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
        FileFormatError: it is damaged, unsafe or holds no vectors.
    """
    if isinstance(source, SteeringVectorSet):
        return source
    if isinstance(source, SteeringVector):
        return SteeringVectorSet(source.behavior, [source])
    path = find_vectors(source)
    if not path.is_dir() and (path.suffix in {".json", ".pt"} or not path.exists()):
        return load_vectors(SteeringVector.load(path))
    return SteeringVectorSet.load(path)


def load_vector_sets(source: str | os.PathLike[str]) -> dict[str, SteeringVectorSet]:
    """All sets at a path, by behaviour: one set, one vector, or every set in a folder of sets.

    Raises:
        VectorError: two sets are of one behaviour, or the folder holds none.
    """
    sets: dict[str, SteeringVectorSet] = {}
    for place in set_places(source):
        found = load_vectors(place)
        if found.behavior in sets:
            raise VectorError(f"{source} holds two sets of {found.behavior!r}. Name the folder of the one you mean.")
        sets[found.behavior] = found
    return sets


def set_places(source: str | os.PathLike[str]) -> list[Path]:
    """Where the sets are that `load_vector_sets` reads, in its order.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
        VectorError: the folder holds none.
    """
    places = find_sets(find_vectors(source))
    if not places:
        raise VectorError(f"{source} is a folder without vector sets. Save some there: vectors.save('{source}/NAME').")
    return places


def strength_by_behavior(
    sets: Mapping[str, SteeringVectorSet], strength: float | str | Mapping[str, float]
) -> dict[str, float]:
    """One number for every behaviour, or numbers by behaviour: a mapping, or text like "formality:1;refusal:-0.5".

    Raises:
        OptionError: text that is neither.
    """
    if isinstance(strength, Mapping):
        return dict(strength)
    text = str(strength) if isinstance(strength, str) else ""
    named = [part.rpartition(":") for part in text.split(";")] if ":" in text else []
    try:
        found = {behavior.strip(): float(number) for behavior, _, number in named}
        one = as_real(float(text) if text and not named else strength)
    except ValueError:
        found, one = {}, None
    if not found and one is None:
        raise OptionError(
            f"strength is {strength!r}; give a number, or one for each behaviour such as "
            f"{';'.join(f'{behavior}:1.0' for behavior in sets)!r}."
        )
    if len(found) < len(named):
        raise OptionError(f"strength {text!r} names a behaviour twice.")
    return found if one is None else dict.fromkeys(sets, one)


def steer_model(
    model: nn.Module,
    vectors: str | os.PathLike[str],
    strength: float | str | Mapping[str, float] = 1.0,
    *,
    layer: int | None = None,
    injection_mode: Scope = "all",
    check_model: bool = True,
) -> MultiVectorInjector:
    """Steers every call of a model from now on; call `detach` of what is returned to end it.

    Args:
        vectors: path of one set, one vector, or a folder of sets, which all act; or `owner/name[@revision]`.
        strength: one number for every behaviour, or a number by behaviour (1.0 for those left out).
        layer: the one layer at which every behaviour acts; by default each acts at its set's acting layers.
        injection_mode, check_model: as in `MultiVectorInjector`.
    """
    sets = load_vector_sets(vectors)
    warn_not_steering(sets.values())
    injector = MultiVectorInjector(
        model, sets, strength_by_behavior(sets, strength), injection_mode, layer, check_model=check_model
    )
    injector.attach()
    return injector
