"""What a chat template reads, found by parsing its source: the options that it knows and the values it expects."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from rotalabs_steer.errors import ChatTemplateError

_GENERATION_TAG = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")  # an extension of transformers to Jinja
_SET_BY_RENDERING = ("messages", "raise_exception", "strftime_now")
_TRUTH_TESTS = ("true", "false", "boolean")
_THINKING_OPTIONS = ("enable_thinking", "thinking")


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

    @cached_property
    def options(self) -> frozenset[str]:
        """The variables that the template takes from outside, without those that every rendering sets."""
        from jinja2.meta import find_undeclared_variables

        return frozenset(find_undeclared_variables(self._tree)) - set(self.set_by_rendering)

    @property
    def set_by_rendering(self) -> tuple[str, ...]:
        """The names of the messages and of functions."""
        return (*_SET_BY_RENDERING, *self._environment.globals)

    @property
    def thinking_options(self) -> list[str]:
        """The options that open or close a block of thoughts."""
        return [name for name in _THINKING_OPTIONS if name in self.options]

    def takes_boolean(self, name: str) -> bool:
        """Whether an option is meant to be true or false."""
        from jinja2 import nodes

        tested = (test for test in self._tree.find_all(nodes.Test) if test.name in _TRUTH_TESTS)
        return name in _THINKING_OPTIONS or any(name in _names(test) for test in tested)

    def compares(self, name: str, value: Any) -> bool:
        """Whether the template compares an option with a value, as in `{% if effort == 'none' %}`."""
        from jinja2 import nodes

        comparisons = (node for node in self._tree.find_all(nodes.Compare) if name in _names(node))
        return any(value == const.value for node in comparisons for const in node.find_all(nodes.Const))


def _names(node: Any) -> set[str]:
    from jinja2 import nodes

    return {found.name for found in node.find_all(nodes.Name)}
