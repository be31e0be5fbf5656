"""Streams the text that a model writes in another thread."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from transformers.generation.streamers import BaseStreamer

if TYPE_CHECKING:
    import contextvars
    from collections.abc import Callable, Collection, Generator, Iterator, Sequence

    import torch


def stream_text(
    write: Callable[[BaseStreamer, Callable[..., bool]], Any],
    decode: Callable[[Sequence[int]], str],
    ends: Collection[int],
    context: contextvars.Context,
) -> Generator[str, None, None]:
    """Yields the pieces of a text, each as soon as its tokens make whole characters.

    Closing the iterator early stops the model. An error of the model is raised here.

    Args:
        write: generates one row with the streamer and the stopping criterion that it is given.
        ends: tokens that end the text and do not belong to it.
        context: the context that `write` runs in.
    """
    tokens, stop = _Tokens(), threading.Event()

    def run() -> None:
        try:
            write(tokens, lambda *_, **__: stop.is_set())
        except BaseException as error:
            tokens.queue.put(error)
        else:
            tokens.queue.put(None)

    thread = threading.Thread(target=context.run, args=(run,), daemon=True)
    thread.start()
    try:
        yield from _pieces(iter(tokens.queue.get, None), decode, ends)
    finally:
        stop.set()
        thread.join()


def _pieces(
    queue: Iterator[list[int] | BaseException], decode: Callable[[Sequence[int]], str], ends: Collection[int]
) -> Iterator[str]:
    ids: list[int] = []
    shown, before = 0, 0  # the number of tokens that are shown now, and that were shown before the last piece
    for written in queue:
        if isinstance(written, BaseException):
            raise written
        ids += [token for token in written if token not in ends]
        # The tokens of the last piece are decoded again, because a token may get its leading blank only after another.
        known, text = decode(ids[before:shown]), decode(ids[before:])
        if len(text) > len(known) and not text.endswith("\ufffd"):  # the sign for an incomplete character
            before, shown = shown, len(ids)
            yield text[len(known) :]
    rest = decode(ids[before:])[len(decode(ids[before:shown])) :]
    if rest:
        yield rest


class _Tokens(BaseStreamer):  # type: ignore[misc]
    """Puts the tokens that `generate` writes into a queue, without the prompt."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt, then with each token."""
        if self._saw_prompt:
            self.queue.put(value.flatten().tolist())
        self._saw_prompt = True

    def end(self) -> None:
        """Does nothing: the thread itself reports that it has ended."""
