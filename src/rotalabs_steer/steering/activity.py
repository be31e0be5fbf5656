"""What a model and its steered layers did while a block of steering was open.

A layer that did not run was not steered, and that is an error, never a silently unsteered model.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rotalabs_steer.errors import NotSteeredError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rotalabs_steer.model.forward_calls import CallTracker


@dataclass(frozen=True)
class Counts:
    """What a model has done up to a moment."""

    calls: int
    layer_calls: dict[int, int]
    unscoped_calls: int
    refusal: object


class Activity:
    """Counts the calls of a model's steered layers.

    Attributes:
        layer_calls: calls of each layer that was ever steered, each in a list of one number, because a hook can
            increment that fastest.
        unscoped_calls: layer calls that were made outside every scope while a scope was open somewhere.
    """

    def __init__(self, tracker: CallTracker) -> None:
        self._tracker = tracker
        self.layer_calls: dict[int, list[int]] = {}
        self.unscoped_calls = 0

    def count_of(self, layer: int) -> list[int]:
        """The count of a layer's calls."""
        return self.layer_calls.setdefault(layer, [0])

    def counts(self, *, scoped: bool) -> Counts:
        """What the model has done so far: in this thread for a scope, else in all threads."""
        return Counts(
            self._tracker.local.calls if scoped else self._tracker.calls,
            {layer: count[0] for layer, count in self.layer_calls.items()},
            self.unscoped_calls,
            self._tracker.refusal,
        )

    def check_acted(self, start: Counts, layers: Iterable[int], acted: Iterable[int] | None) -> None:
        """Compares a block that has ended with what the model did meanwhile.

        Args:
            start: `counts` when the block began.
            layers: the layers to be steered.
            acted: the layers at which a scope acted; None if every caller was steered.

        Raises:
            NotSteeredError: the model ran, and layers that were to be steered did not.
            PositionError: one was raised in a worker thread, where nobody may have seen it.
        """
        scoped = acted is not None
        now = self.counts(scoped=scoped)
        if acted is None:
            acted = [layer for layer in layers if now.layer_calls[layer] > start.layer_calls.get(layer, 0)]
        ran, idle = now.calls > start.calls, [layer for layer in layers if layer not in acted]
        if scoped and not ran and not acted and now.unscoped_calls > start.unscoped_calls:
            raise NotSteeredError(
                "The model did not run in this scope, but it ran outside of it meanwhile. A scope steers the "
                "thread, task or generator that opened it. Open it where the model is called, inside the worker "
                "thread, or steer the model for all threads with `with injector:`."
            )
        refusal = self._tracker.refusal
        if not ran and refusal not in (None, start.refusal) and refusal[0] is not threading.current_thread():
            raise refusal[1]
        if ran and idle:
            raise NotSteeredError(
                f"The model ran, but its layers {idle} did not run as they were attached to, so they were not "
                "steered. Code that was compiled elsewhere or layers that were replaced meanwhile do this: attach "
                "after the model is complete, and compile it with torch.compile."
            )
