"""Lists where a list is wanted: a single string is one, too, of its letters, and would silently be taken for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from rotalabs_steer.errors import OptionError

_Item = TypeVar("_Item")


def list_of(name: str, given: Iterable[_Item]) -> list[_Item]:
    """The items of a list, generator or array.

    Args:
        name: what the argument is called, for the error.

    Raises:
        OptionError: it is one string, a mapping, or nothing that has items.
    """
    if isinstance(given, str):
        raise OptionError(f"{name} is one string; give a list of strings.")
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise OptionError(f"{name} is a {type(given).__name__}; give a list.")
    return list(given)
