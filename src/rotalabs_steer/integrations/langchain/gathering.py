"""The calls of one `batch`, brought together into one run of the model.

LangChain runs every input of a batch as a call of its own, with its own callbacks, cache look-up and errors. That stays
so; only the model waits until each call has come with its requests, or has ended without any.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rotalabs_steer.integrations.langchain.generation import Answer, Request

_MEMBER: contextvars.ContextVar[_Member | None] = contextvars.ContextVar("rotalabs_steer_gathering", default=None)


class Gathering:
    """A number of calls that are answered together by `answer`."""

    def __init__(self, calls: int, answer: Callable[[Sequence[Request]], list[Answer]]) -> None:
        self._missing = calls
        self._answer = answer
        self._waiting: list[tuple[Sequence[Request], Future[list[Answer]]]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def member(self) -> Iterator[None]:
        """The body is one of the calls: `gathered` in it hands its requests in."""
        member = _Member(self)
        token = _MEMBER.set(member)
        try:
            yield
        finally:
            _MEMBER.reset(token)
            if not member.has_asked:
                self._count()

    def ask(self, requests: Sequence[Request]) -> Future[list[Answer]]:
        """Hands in one call's requests."""
        future: Future[list[Answer]] = Future()
        with self._lock:
            self._waiting.append((requests, future))
        self._count()
        return future

    def _count(self) -> None:
        with self._lock:
            self._missing -= 1
            complete = self._missing == 0 and bool(self._waiting)
        if complete:
            threading.Thread(target=contextvars.copy_context().run, args=(self._run,), daemon=True).start()

    def _run(self) -> None:
        wanted = [(requests, future) for requests, future in self._waiting if future.set_running_or_notify_cancel()]
        try:
            answers = iter(self._answer([request for requests, _ in wanted for request in requests]))
        except BaseException as error:  # raised in every call that waits
            for _, future in wanted:
                future.set_exception(error)
            return
        for requests, future in wanted:
            future.set_result(list(itertools.islice(answers, len(requests))))


class _Member:
    def __init__(self, gathering: Gathering) -> None:
        self.gathering = gathering
        self.has_asked = False


def gathered(requests: Sequence[Request]) -> Future[list[Answer]] | None:
    """The answers to come, if the present call is one of a gathering that has not asked yet."""
    member = _MEMBER.get()
    if member is None or member.has_asked:
        return None
    member.has_asked = True
    return member.gathering.ask(requests)
