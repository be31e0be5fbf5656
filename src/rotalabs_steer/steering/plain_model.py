"""The plain model: a block or a measure in which nothing acts that was attached before."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rotalabs_steer.steering.attachment import SteeredDecoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from rotalabs_steer.steering.attachment import PlainBlock

Measure = TypeVar("Measure", bound="Callable[..., Any]")


class unsteered:  # noqa: N801 - used as a function
    """The plain model, for calls from this thread or asyncio task, whatever is attached to it.

    Whatever this thread or task attaches inside the block acts as usual. Extraction, tuning and every measure of this
    package use the plain model for their baselines.

    Example:
        >>> with unsteered(model):  # doctest: +SKIP
        ...     plain = model.generate(**inputs)
    """

    def __init__(self, model: nn.Module) -> None:
        self._steered = SteeredDecoder.of(model)
        self._open: list[PlainBlock] = []

    def __enter__(self) -> None:
        self._open.append(self._steered.open_plain(sys._getframe(1)))

    def __exit__(self, *error: object) -> None:
        self._steered.close_plain(self._open.pop())


def on_plain_model(measure: Measure) -> Measure:
    """A decorator that makes a measure run on the plain model, on which only the measure's own injectors act."""

    @functools.wraps(measure)
    def measured(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with unsteered(model):
            return measure(model, *args, **kwargs)

    return cast("Measure", measured)
