"""Steers a model from the arguments that evaluation harnesses pass: a path of vectors, and strengths as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rotalabs_steer.arguments import as_real
from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.acting_layers import warn_not_steering
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.strengths_in_text import parse_numbers
from rotalabs_steer.vector_sources import load_vector_sets

if TYPE_CHECKING:
    import os

    from torch import nn

    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.vectors import SteeringVectorSet


def strength_by_behavior(
    sets: Mapping[str, SteeringVectorSet], strength: float | str | Mapping[str, float]
) -> dict[str, float]:
    """The strength of each behaviour that `strength` names.

    Args:
        strength: one number for every behaviour; or numbers by behaviour, as a mapping or as a string such as
            "formality=1,refusal=-0.5" or "formality:1;refusal:-0.5".

    Raises:
        OptionError: it is neither.
    """
    if isinstance(strength, Mapping):
        return dict(strength)
    if isinstance(strength, str) and ("=" in strength or ":" in strength):
        return parse_numbers(strength)
    try:
        number = as_real(float(strength) if isinstance(strength, str) else strength)
    except ValueError:
        number = None
    if number is None:
        raise OptionError(
            f"strength is {strength!r}; give a number, or one for each behaviour such as "
            f"{';'.join(f'{behavior}:1.0' for behavior in sets)!r}."
        )
    return dict.fromkeys(sets, number)


def steer_model(
    model: nn.Module,
    vectors: str | os.PathLike[str],
    strength: float | str | Mapping[str, float] = 1.0,
    *,
    layer: int | None = None,
    injection_mode: Scope = "all",
    check_model: bool = True,
) -> MultiVectorInjector:
    """Steers every call of a model until `detach` of the returned injector is called.

    Args:
        vectors: path of one set, one vector, or a folder whose sets all act; or `owner/name[@revision]` on the Hub.
        strength: one number for every behaviour, or a number by behaviour (1.0 for those left out).
        layer: the one layer at which every behaviour acts; by default each acts at its set's acting layers.
        injection_mode, check_model: as in `MultiVectorInjector`.
    """
    sets = load_vector_sets(vectors)
    warn_not_steering(sets.values())
    injector = MultiVectorInjector(
        model, sets, strength_by_behavior(sets, strength), injection_mode, layer, check_model=check_model
    )
    return injector.attach()
