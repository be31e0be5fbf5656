"""Finds the generator that opens a block: steering that is opened in the body of a generator belongs to that generator.

The body of a generator runs a piece at a time, in the context, and even the thread, of whoever asks for the next piece.
So a context variable does not say which blocks the body is in. The frame of the body does: it is on the stack exactly
while the body runs.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

_ENTERING = ("__enter__", "__aenter__")


def iterated_generator(frame: FrameType | None) -> tuple[FrameType | None, int]:
    """The frame of the generator whose body opens a block, and its kind: `CO_GENERATOR` or `CO_ASYNC_GENERATOR`.

    Code that opens the block for its caller is skipped: `contextlib`, the generators that it runs as context managers,
    and `__enter__` methods. Without a generator, the result is `(None, 0)`.
    """
    while frame is not None:
        caller = frame.f_back
        by_contextlib = caller is not None and caller.f_globals.get("__name__") == "contextlib"
        kind = frame.f_code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR)
        if kind and not by_contextlib:
            return frame, kind
        opens_for_others = frame.f_globals.get("__name__") == "contextlib" or frame.f_code.co_name in _ENTERING
        if not kind and not opens_for_others:
            return None, 0
        frame = caller
    return None, 0


def frames_on_stack() -> set[FrameType]:
    """The frames of all functions that are running in this thread now."""
    frame: FrameType | None = sys._getframe(1)
    frames = set()
    while frame is not None:
        frames.add(frame)
        frame = frame.f_back
    return frames
