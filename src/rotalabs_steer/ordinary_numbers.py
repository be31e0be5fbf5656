"""Numbers as Python has them, from those of numpy, torch and other array libraries."""

from __future__ import annotations

import math
import numbers
import operator
from typing import Any


def plain_value(value: Any) -> Any:
    """What an array or tensor holds, as Python has it: a number where it has no dimension, else lists. Others stay.

    Array libraries are known by what they share, `ndim` and `tolist`, so that none of them is imported here.
    """
    is_array = hasattr(value, "ndim") and hasattr(value, "tolist")
    return value.tolist() if is_array else value


def as_integer(value: Any) -> int | None:
    """The integer that a value is; None for anything else, truth values included."""
    value = plain_value(value)
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_real(value: Any) -> float | None:
    """The finite real number that a value is; None for anything else: text, truth values, NaN and infinity."""
    value = plain_value(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def as_truth(value: Any) -> bool | None:
    """The truth value that a value is: True, False, or a number that is 0 or 1; None for anything else."""
    value = plain_value(value)
    return bool(value) if isinstance(value, numbers.Real) and value in (0, 1) else None


def json_value(value: Any) -> Any:
    """The `default` of `json.dumps`: numbers and arrays of numpy and torch as numbers and lists.

    Raises:
        TypeError: the value is neither, so JSON does not have it.
    """
    plain = plain_value(value)
    if plain is value:
        raise TypeError(f"an object of type {type(value).__name__} is not a JSON value")
    return plain
