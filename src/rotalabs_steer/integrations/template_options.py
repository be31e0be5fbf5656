"""Parses options of a chat template from the arguments of a command line or a harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_template_options(given: Mapping[str, Any] | Sequence[str] | str | None) -> dict[str, Any]:
    """The options by name.

    Args:
        given: a mapping; strings `NAME=VALUE`; or one string with `;` between these. A value that is not JSON is a
            string.

    Raises:
        OptionError: a string has another form, or a name is given twice.
    """
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    parsed: dict[str, Any] = {}
    for option in given.split(";") if isinstance(given, str) else given:
        name, equals, value = option.partition("=")
        name = name.strip()
        if not (name and equals):
            raise OptionError(
                f"The template option {option!r} is not of the form NAME=VALUE, as in enable_thinking=false."
            )
        if name in parsed:
            raise OptionError(f"The template option {name!r} is given twice. Give it once.")
        try:
            parsed[name] = json.loads(value)
        except ValueError:
            parsed[name] = value
    return parsed
