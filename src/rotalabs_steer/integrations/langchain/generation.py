"""Steered answers to rendered prompts: a batch at once, or one piece by piece."""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from rotalabs_steer.decoder import text_config
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.generation import continue_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rotalabs_steer.datasets.chat_tokenizer import ChatTokenizer
    from rotalabs_steer.integrations.langchain.behaviors import SteeredBehaviors


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated; `options` go to `model.generate` as they are."""

    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise OptionError(
                f"max_new_tokens must be at least 1 and temperature at least 0, got {self.max_new_tokens} and "
                f"{self.temperature}."
            )

    def for_generate(self) -> dict[str, Any]:
        """The keyword arguments of `model.generate`, but for number of tokens and stop strings."""
        drawn = {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {"do_sample": False}
        return drawn | dict(self.options)


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids, with the strengths that it is answered at."""

    ids: tuple[int, ...]
    strengths: Mapping[str, float]
    settings: GenerationSettings


@dataclass(frozen=True)
class Answer:
    """What the model wrote, up to a stop string.

    Attributes:
        finished: the model came to an end by itself or to a stop string; False where it was cut at `max_new_tokens`.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool


class Generator:
    """A model with its tokenizer and steering."""

    def __init__(self, chat: ChatTokenizer, behaviors: SteeredBehaviors) -> None:
        self.chat = chat
        self.tokenizer = chat.tokenizer
        self.behaviors = behaviors
        self.window: int | None = getattr(text_config(behaviors.model), "max_position_embeddings", None)

    def request(
        self, text: str, strengths: Mapping[str, float], settings: GenerationSettings, *, special: bool
    ) -> Request:
        """A rendered prompt as a request. `special`: it is a plain text, so special tokens are added to it.

        Raises:
            OptionError: the prompt is empty or fills the model's context.
        """
        ids = self.chat.ids(text, special=special)
        if not ids:
            raise OptionError("The prompt is empty: there is nothing to answer.")
        if self.window is not None and len(ids) >= self.window:
            raise OptionError(f"The prompt has {len(ids)} tokens; the model's context holds {self.window}. Shorten it.")
        return Request(ids, strengths, settings)

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests, in their order: one batch for each way of settings, strengths by row."""
        answers: dict[int, Answer] = {}
        left = list(range(len(requests)))
        while left:
            settings = requests[left[0]].settings
            numbers = [
                number for number in left if requests[number].settings == settings
            ]  # options need not be hashable
            left = [number for number in left if number not in numbers]
            batch = [requests[number] for number in numbers]
            for number, request, (row, finished) in zip(numbers, batch, self.generate(batch), strict=True):
                text = self.tokenizer.decode(row, skip_special_tokens=True)
                before = "".join(up_to([text], settings.stop))
                answers[number] = Answer(before, len(request.ids), len(row), finished)
        return [answers[number] for number in range(len(requests))]

    def generate(
        self, requests: Sequence[Request], left: threading.Event | None = None, streamer: TextStreamer | None = None
    ) -> list[tuple[list[int], bool]]:
        """New tokens for each request, all sampled in one way, and whether they came to an end.

        Args:
            left: ends the generation when it is set.
        """
        settings = requests[0].settings
        criteria = StoppingCriteriaList([_Ends(self.tokenizer, settings.stop, left)])
        most = settings.max_new_tokens
        if self.window is not None:
            most = min(most, self.window - max(len(request.ids) for request in requests))
        injector = self.behaviors.injector([request.strengths for request in requests])
        with injector.scoped() if injector is not None else contextlib.nullcontext():
            rows = continue_rows(
                self.behaviors.model,
                self.tokenizer,
                [request.ids for request in requests],
                most,
                stopping_criteria=criteria,
                streamer=streamer,
                **settings.for_generate(),
            )
        return [(row, len(row) < most) for row in rows]

    def stream(self, request: Request) -> AnswerStream:
        """The answer to a request, piece by piece."""
        return AnswerStream(self, request)


class SharedRun(Generator):
    """A generator that is told some requests beforehand, and answers all of them when the first one is asked for.

    An error of that run is raised for each of the requests. Requests that it was not told are answered on their own.
    """

    def __init__(self, generator: Generator, requests: Sequence[Request]) -> None:
        super().__init__(generator.chat, generator.behaviors)
        self._waiting = list(requests)
        self._answered: list[tuple[Request, Answer]] = []
        self._error: Exception | None = None

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """The answers to requests, in their order. Equal requests get the answers of the run in its order."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                self._answered = list(zip(waiting, super().answers(waiting), strict=True))
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        for number, (known, answer) in enumerate(self._answered):
            if known == request:
                del self._answered[number]
                return answer
        return super().answers([request])[0]


class AnswerStream:
    """Iterates over the pieces of one answer; `answer` is there once the last has been read.

    The model runs in a thread of its own, where it is steered. A reader who leaves early stops it.
    """

    def __init__(self, generator: Generator, request: Request) -> None:
        self._generator = generator
        self._request = request
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = threading.Event()

        def run() -> None:
            streamer = _Pieces(self._generator.tokenizer, pieces)
            try:
                pieces.put(self._generator.generate([self._request], left, streamer)[0])
            except BaseException as error:  # raised where the pieces are read
                pieces.put(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
        thread.start()
        text = ""
        outcome: list[tuple[list[int], bool]] = []
        try:
            for piece in up_to(_read(pieces, outcome), self._request.settings.stop):
                text += piece
                yield piece
            ((row, finished),) = outcome
            self.answer = Answer(text, len(self._request.ids), len(row), finished)
        finally:
            left.set()
            thread.join()


def up_to(pieces: Iterable[str], ends: Sequence[str]) -> Iterator[str]:
    """The text before the first of some ends. What could be the beginning of an end is held back until it is not.

    All pieces are read, also those behind an end.
    """
    held = ""
    ended = False
    for piece in pieces:
        if ended:
            continue
        held += piece
        places = [place for end in ends if (place := held.find(end)) >= 0]
        ended = bool(places)
        safe = min(places) if ended else len(held) - _begun(held, ends)
        if safe:
            yield held[:safe]
        held = "" if ended else held[safe:]
    if held:
        yield held


def _begun(text: str, ends: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of an end."""
    lengths = (n for end in ends for n in range(len(end) - 1, 0, -1) if text.endswith(end[:n]))
    return max(lengths, default=0)


def _read(pieces: queue.SimpleQueue[Any], outcome: list[tuple[list[int], bool]]) -> Iterator[str]:
    """The pieces as they come; what follows them goes to `outcome`, or is raised."""
    while isinstance(piece := pieces.get(), str):
        yield piece
    if isinstance(piece, BaseException):
        raise piece
    outcome.append(piece)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Puts what the model writes into a queue, in pieces that end between words."""

    def __init__(self, tokenizer: Any, pieces: queue.SimpleQueue[Any]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._queue = pieces

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called for every piece, empty ones included."""
        if text:
            self._queue.put(text)


class _Ends(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at a stop string, and all rows when nobody reads them any more.

    transformers' own `stop_strings` matches in the prompt as well, and looks through the whole vocabulary before the
    first token, which takes longer than a short answer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], left: threading.Event | None) -> None:
        self._tokenizer = tokenizer
        self._stops = stops
        self._left = left
        self._reach = max((len(stop.encode()) for stop in stops), default=0) + 1  # a token has a byte at least
        self._start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """One answer for each row."""
        if self._start is None:
            self._start = input_ids.shape[1] - 1
        if self._left is not None and self._left.is_set():
            return torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        if not self._stops:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._reach) :].tolist()
        texts = [self._tokenizer.decode(tail, skip_special_tokens=True) for tail in tails]
        ended = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)
