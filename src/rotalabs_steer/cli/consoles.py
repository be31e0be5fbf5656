"""Where verbs write: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LIBRARY = "rotalabs_steer"


def output() -> Console:
    """The console for results."""
    return Console(color_system=_color_system())


def notes(quiet: bool = False) -> Console:
    """The console on standard error for everything but results: the model, progress, places of files."""
    return Console(
        stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=True, color_system=_color_system()
    )


def warning(message: str) -> Text:
    """A warning as every verb shows one."""
    return Text.assemble(("warning:", "bold yellow"), f" {message}")


def print_json(document: Any) -> None:
    """Writes a document to standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


@contextmanager
def progress(console: Console, what: str, describe: Callable[[str], str] = str) -> Iterator[None]:
    """Shows the steps of long work, which the library logs: one line that vanishes on a terminal, else a line each.

    Args:
        what: the line that is shown until the first step is logged.
        describe: turns a logged message into a line.
    """
    logger = logging.getLogger(_LIBRARY)
    level = logger.level
    with console.status(what) as status:

        def show(message: str) -> None:
            status.update(describe(message)) if console.is_terminal else console.print(describe(message))

        if not console.is_terminal:
            console.print(what)
        handler = _Handler(show)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


class _Handler(logging.Handler):
    """Calls a function with the message of each log record."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


def _color_system() -> Any:
    """None if the user set NO_COLOR; it leaves out bold text, too."""
    return None if os.environ.get("NO_COLOR") else "auto"
