"""Checks that vectors and conditions fit a model, before anything is attached."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from rotalabs_steer.errors import LayerError, ModelMismatchError, OptionError, VectorError
from rotalabs_steer.model.configs import find_model_config
from rotalabs_steer.model.decoder import SHAPE_FACTS, check_layer_indices, hidden_size, model_fingerprint, model_name
from rotalabs_steer.steering.conditions import Condition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rotalabs_steer.vectors import SteeringVector


def check_vectors(model: nn.Module, vectors: Iterable[SteeringVector], *, check_model: bool = True) -> None:
    """Refuses vectors that do not fit the model, before anything is attached."""
    width = hidden_size(model)
    for vector in vectors:
        check_layer_indices(model, [vector.layer_index])
        check_width(vector, width, model_name(model))
        if check_model:
            check_same_model(model_fingerprint(model), model_name(model), vector)


def check_width(vector: SteeringVector, width: int, name: str) -> None:
    """Refuses a vector that is not as long as the hidden size of the model with this name."""
    if vector.dim != width:
        raise VectorError(
            f"The vector of {vector.behavior!r} has {vector.dim} numbers; {name} has hidden size {width}. It was made "
            f"from {vector.model_name!r}: extract it from this model."
        )


def check_condition(model: nn.Module, condition: Condition, vectors: Iterable[SteeringVector]) -> None:
    """Refuses a condition that does not fit the model, or is decided after the first layer that is steered."""
    if not isinstance(condition, Condition):
        raise OptionError(
            f"condition is a {type(condition).__name__}, not a Condition. Of a FittedCondition, give .condition."
        )
    check_layer_indices(model, [condition.layer_index])
    if condition.vector.shape[0] != hidden_size(model):
        raise VectorError(f"The condition's vector has {condition.vector.shape[0]} numbers, not {hidden_size(model)}.")
    first = min(vector.layer_index for vector in vectors)
    if condition.layer_index > first:
        raise LayerError(
            f"The condition is decided at layer {condition.layer_index}, after layer {first} has been steered. "
            f"Fit it at layer {first} or before."
        )


def check_same_model(mine: Mapping[str, str | int], name: str, vector: SteeringVector) -> None:
    """Compares the model's architecture with the recorded one; without a record, the names, if both identify a model.

    The vocabulary is not compared: it may grow without a change of the residual stream.

    Args:
        mine: the model's `decoder.model_fingerprint`.
        name: what the model is called.

    Raises:
        ModelMismatchError: the vector was made from another model.
    """
    theirs = vector.fingerprint
    differences: list[str] = []
    if theirs is not None:
        differences = [
            f"{fact} is {theirs.get(fact)!r:.80} there and {mine[fact]!r} here"
            for fact in SHAPE_FACTS
            if theirs.get(fact) != mine[fact]
        ]
        same = not differences
    else:
        known = find_model_config(vector.model_name)
        fits = known is None or (known.num_layers, known.hidden_size) == (mine["num_layers"], mine["hidden_size"])
        named = "/" in vector.model_name or known is not None
        same = fits and (not named or _short(vector.model_name) == _short(name))
    if not same:
        raise ModelMismatchError(
            f"The vector of {vector.behavior!r} was made from {vector.model_name!r}, this model is {name!r}"
            + (f": {', '.join(differences)}. " if differences else ". ")
            + "Extract it from this model, or pass check_model=False if it is meant for it."
        )


def _short(name: str) -> str:
    return PurePath(name).name.lower()
