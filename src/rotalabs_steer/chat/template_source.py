"""The options that a chat template reads and the values that it expects, found by parsing its source."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from rotalabs_steer.errors import ChatTemplateError, OptionError

_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")  # an extension of transformers to Jinja
_SET_BY_RENDERING = ("messages", "raise_exception", "strftime_now")
_TRUTH_TESTS = ("true", "false", "boolean")
_THINKING_OPTIONS = ("enable_thinking", "thinking")
_MISSPELT = ("true", "false", "none", "null", "yes", "no", "on", "off")


class TemplateSource:
    """A chat template as Jinja parses it.

    Raises:
        ChatTemplateError: it cannot be parsed.
    """

    def __init__(self, source: str) -> None:
        from jinja2 import Environment, TemplateError

        self._environment = Environment(extensions=["jinja2.ext.loopcontrols"])  # noqa: S701 - it only parses
        try:
            self._tree = self._environment.parse(_GENERATION_TAG.sub("", source))
        except TemplateError as error:
            raise ChatTemplateError(
                f"The tokenizer's chat template {source!r:.60} is not valid Jinja: {error}. Set another "
                "tokenizer.chat_template."
            ) from error

    @property
    def set_by_rendering(self) -> tuple[str, ...]:
        """The variables that every rendering sets: the messages, and functions."""
        return (*_SET_BY_RENDERING, *self._environment.globals)

    @cached_property
    def options(self) -> frozenset[str]:
        """The other variables that the template takes from outside."""
        from jinja2.meta import find_undeclared_variables

        return frozenset(find_undeclared_variables(self._tree)) - set(self.set_by_rendering)

    @property
    def thinking_options(self) -> list[str]:
        """The options that open or close a block of thoughts."""
        return [name for name in _THINKING_OPTIONS if name in self.options]

    def check_option(self, name: str, value: Any) -> None:
        """Raises an `OptionError` where an option would do nothing, or something other than it says."""
        from jinja2 import nodes

        if name not in self.options:
            close = get_close_matches(str(name), self.options, 1)
            raise OptionError(
                f"The tokenizer's chat template never mentions the option {name!r}, so it would do nothing."
                + (f" Did you mean {close[0]!r}?" if close else "")
            )
        # A value that the template compares the option with is meant, as in `{% if effort == 'none' %}`.
        comparisons = (node for node in self._tree.find_all(nodes.Compare) if name in _names(node))
        constants = (constant.value for node in comparisons for constant in node.find_all(nodes.Const))
        if value is None or isinstance(value, bool) or value in constants:
            return
        tests = (test for test in self._tree.find_all(nodes.Test) if test.name in _TRUTH_TESTS)
        takes_boolean = name in _THINKING_OPTIONS or any(name in _names(test) for test in tests)
        if isinstance(value, str) and (takes_boolean or value.strip().lower() in _MISSPELT):
            raise OptionError(
                f"The template option {name} is the string {value!r}, which templates take for true. Give a boolean or "
                "None (false, true or null on the command line)."
            )
        if takes_boolean:
            raise OptionError(
                f"The template option {name} is {value!r:.60}, but the template expects a boolean. Give one, or None "
                "(false, true or null on the command line)."
            )


def _names(node: Any) -> set[str]:
    from jinja2 import nodes

    return {found.name for found in node.find_all(nodes.Name)}
