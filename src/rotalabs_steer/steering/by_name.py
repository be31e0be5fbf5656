"""`steer`, which takes vectors by name or as objects: `with steer(model, "tuned/calm=0.8"): ...`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from rotalabs_steer.arguments import as_real
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.acting_layers import warn_not_steering
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.scopes import check_scope
from rotalabs_steer.steering.strengths import check_strength
from rotalabs_steer.steering.strengths_in_text import parse_several
from rotalabs_steer.vector_sources import Source, load_vectors
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.steering.injection import SteeringOptions
    from rotalabs_steer.steering.strengths import Strength

What = Source | Mapping[Source, "float | Sequence[float]"] | Iterable["Source | tuple[Source, float | Sequence[float]]"]
"""One or several vector sets, with or without their strengths."""


def steer(
    model: nn.Module,
    what: What,
    **options: Unpack[SteeringOptions],
) -> MultiVectorInjector:
    """Makes an injector from vectors that are named by path or Hugging Face id, or held in memory.

    Args:
        model: a transformers model, or a PEFT model around one.
        what: a string that names vectors and their strengths, which are 1 by default: "tuned/calm", "tuned/calm=0.8",
            "owner/name@revision=0.8", "tuned/calm:14=0.8" (layer 14 only), or several with commas between them. Or a
            `SteeringVectorSet`, a `SteeringVector`, or the result of `tune`. Or a mapping from any of these to
            strengths. Or a list of any of these and of pairs `(vectors, strength)`.
        options: how they steer: `scope`, `intervention`, `schedule`, `condition` and `check_model`; see
            `SteeringOptions`.

    Returns:
        An injector that is not attached yet. `with injector:` steers every caller in the block, `with
        injector.scoped():` steers the current thread only, and `injector.attach()` steers until `injector.detach()`.
        `injector["calm"]` is the strength of the behaviour "calm" and can be changed at any time.

    Raises:
        OptionError: the string is malformed, a strength is not a finite number, or two sets are of one behaviour.
        FileNotFoundError: there is neither a file nor a repository of a name.
        FileFormatError: a file is damaged, is unsafe or does not hold vectors.
        VectorError, LayerError, ModelMismatchError: as in `MultiVectorInjector`; the model is untouched.

    A set that does not steer, as tuning found, gives a `NotSteeringWarning`.
    """
    check_scope(options.get("scope") or "all")  # before files are read or downloaded
    sets, strengths = sets_and_strengths(what)
    warn_not_steering(sets.values())
    return MultiVectorInjector(model, sets, strengths, **options)


def sets_and_strengths(what: What) -> tuple[dict[str, SteeringVectorSet], dict[str, Strength]]:
    """The vector sets that `steer` is given and their strengths, each by behaviour."""
    sets: dict[str, SteeringVectorSet] = {}
    strengths: dict[str, Strength] = {}
    for source, strength in _listed(what):
        vectors = load_vectors(source)
        if vectors.behavior in sets:
            raise OptionError(
                f"Two of the vector sets are of {vectors.behavior!r}, so one name would stand for both. Give one of "
                "them, or put the vectors of different layers into one set: "
                "SteeringVectorSet(behavior, vectors).with_acting_layers(layers)."
            )
        sets[vectors.behavior], strengths[vectors.behavior] = vectors, strength
    if not sets:
        raise OptionError("No vectors given: nothing would be steered.")
    return sets, strengths


def _listed(what: What) -> list[tuple[Source, Strength]]:
    """Each source that is given, with its strength, which is 1 by default."""
    if isinstance(what, Mapping):
        return [(_whole(source), _strength(source, strength)) for source, strength in what.items()]
    if isinstance(what, str):
        return _named(what)
    # Sets and arrays are iterable, too; `load_vectors` refuses an array with a message of its own.
    is_one = isinstance(what, (SteeringVectorSet, os.PathLike)) or hasattr(what, "ndim")
    if is_one or not isinstance(what, Iterable):
        return [(what, 1.0)]  # type: ignore[list-item]
    listed: list[tuple[Source, Strength]] = []
    for item in what:
        if isinstance(item, tuple) and len(item) == 2:
            listed.append((_whole(item[0]), _strength(*item)))
        elif isinstance(item, str):
            listed += _named(item)
        elif as_real(item) is not None:
            raise OptionError(
                f"{item!r:.80} stands alone in the list. Give a strength with its vectors: [(vectors, 0.8)]."
            )
        else:
            listed.append((item, 1.0))
    return listed


def _named(text: str) -> list[tuple[Source, Strength]]:
    found: list[tuple[Source, Strength]] = []
    for named in parse_several(text):
        strength = 1.0 if named.strength is None else named.strength
        if named.layers is None:
            found.append((named.place, strength))
        else:
            found.append((load_vectors(named.place).with_acting_layers(named.layers), strength))
    return found


def _whole(source: Any) -> Any:
    """A source that has its strength beside it; if it is a string, that may name layers but not a second strength."""
    if not isinstance(source, str):
        return source
    named = parse_several(source)
    if len(named) > 1 or named[0].strength is not None:
        raise OptionError(
            f"{source!r:.200} has a strength beside it, so it must name one vector set without a strength."
        )
    return _named(source)[0][0]


def _strength(source: Any, strength: Any) -> Strength:
    if isinstance(strength, (SteeringVectorSet, SteeringVector, str)) or hasattr(strength, "vectors"):
        raise OptionError(
            f"The strength of {source!r:.80} is a {type(strength).__name__}, not a number. Give vectors and their "
            "strengths, as in {'tuned/calm': 0.8} or [(vectors, 0.8)]; a set is named by its own behaviour."
        )
    return check_strength(strength)
