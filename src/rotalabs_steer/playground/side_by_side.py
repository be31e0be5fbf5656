"""Answers that are generated side by side, each in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence


class _ReaderGoneError(Exception):
    """Ends a writer whose reader has left."""


def write_together(writers: Sequence[Callable[[Callable[[str], None]], None]]) -> Generator[tuple[str, ...]]:
    """Yields the texts of all writers so far, whenever one of them has grown.

    Args:
        writers: functions that are given a function, and call it with their text so far. If the reader closes the
            generator, or another writer fails, that call raises and so ends the writer.
    """
    news: queue.SimpleQueue[tuple[int, str | BaseException | None]] = queue.SimpleQueue()
    left = threading.Event()

    def run(number: int) -> None:
        def write(text: str) -> None:
            if left.is_set():
                raise _ReaderGoneError
            news.put((number, text))

        try:
            writers[number](write)
            news.put((number, None))
        except BaseException as error:  # raised where the texts are read
            news.put((number, error))

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    texts, running = [""] * len(writers), len(writers)
    try:
        while running:
            number, what = news.get()
            if isinstance(what, BaseException):
                raise what
            if what is None:
                running -= 1
            else:
                texts[number] = what
                yield tuple(texts)
    finally:
        left.set()
        for thread in threads:
            thread.join()


class Turns:
    """Lets several generations on one model take turns of one token, with the results of running alone.

    All threads share torch's random generators, so each turn begins with the state in which the last turn of its thread
    ended.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._order = deque(range(count))
        self._seed = seed
        self._changed = threading.Condition()

    def begin(self, number: int) -> None:
        """Waits for the first turn, which starts from the seed."""
        import torch

        with self._changed:
            self._wait(number)
        torch.manual_seed(self._seed)

    def give_way(self, number: int) -> None:
        """Ends a turn, and waits for the next one."""
        state = _random_state()
        with self._changed:
            self._order.rotate(-1)
            self._changed.notify_all()
            self._wait(number)
        _set_random_state(state)

    def leave(self, number: int) -> None:
        """Takes no more turns."""
        with self._changed:
            self._order.remove(number)
            self._changed.notify_all()

    def _wait(self, number: int) -> None:
        self._changed.wait_for(lambda: self._order[0] == number)


def _random_state() -> list[Any]:
    import torch

    states = [torch.get_rng_state()]
    return [*states, torch.get_device_module().get_rng_state()] if torch.accelerator.is_available() else states


def _set_random_state(states: list[Any]) -> None:
    import torch

    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.get_device_module().set_rng_state(state)
