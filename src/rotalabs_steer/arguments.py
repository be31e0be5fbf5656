"""Numbers and lists that users pass, checked and turned into Python's own."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from rotalabs_steer.errors import OptionError

_Item = TypeVar("_Item")


def list_of(name: str, given: Iterable[_Item]) -> list[_Item]:
    """The items of a list, generator or array.

    Args:
        name: what the argument is called, for the error.

    Raises:
        OptionError: `given` is a single string, whose letters would be taken for the items; a mapping; or not iterable.
    """
    if isinstance(given, str):
        raise OptionError(f"{name} is one string; give a list of strings.")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise OptionError(f"{name} is a {type(given).__name__}; give a list.")
    return list(given)


def plain_value(value: Any) -> Any:
    """An array or tensor as a Python number (if it has no dimensions) or nested lists; any other value unchanged."""
    # Every array library has these two attributes, so none of the libraries has to be imported.
    is_array = hasattr(value, "ndim") and hasattr(value, "tolist")
    return value.tolist() if is_array else value


def as_integer(value: Any) -> int | None:
    """The value as an int; None if it is not an integer. True and False are not integers."""
    value = plain_value(value)
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_real(value: Any) -> float | None:
    """The value as a float; None if it is not a finite real number. True and False are not numbers."""
    value = plain_value(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def as_truth(value: Any) -> bool | None:
    """The value as a bool, if it is True, False or a number equal to 0 or 1; None otherwise."""
    value = plain_value(value)
    return bool(value) if isinstance(value, numbers.Real) and value in (0, 1) else None


def json_value(value: Any) -> Any:
    """Converts arrays and numbers of numpy and torch for JSON; made to be passed as `default` to `json.dumps`.

    Raises:
        TypeError: the value is of any other type.
    """
    plain = plain_value(value)
    if plain is value:
        raise TypeError(f"an object of type {type(value).__name__} is not a JSON value")
    return plain
