"""Steered answers to rendered prompts, either for a batch at once or for one prompt as a stream."""

from __future__ import annotations

import contextlib
import contextvars
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from rotalabs_steer.arguments import as_integer, as_real
from rotalabs_steer.errors import OptionError
from rotalabs_steer.generation.continuation import continue_rows, end_tokens
from rotalabs_steer.generation.text_streams import stream_text
from rotalabs_steer.model.decoder import text_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from transformers.generation.streamers import BaseStreamer

    from rotalabs_steer.chat.tokenizer import ChatTokenizer
    from rotalabs_steer.integrations.langchain.behaviors import SteeredBehaviors

# These would contradict the settings, or change what `model.generate` returns.
_RESERVED = ("max_new_tokens", "stopping_criteria", "streamer", "num_return_sequences", "return_dict_in_generate")


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are generated.

    Attributes:
        temperature: 0 means greedy decoding.
        stop: strings that end an answer and are not part of it.
        options: further keyword arguments of `model.generate`.

    Raises:
        OptionError: a number is out of range, an option is reserved, or a stop string is empty or not a string.
    """

    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        max_new_tokens, temperature = as_integer(self.max_new_tokens), as_real(self.temperature)
        if max_new_tokens is None or max_new_tokens < 1 or temperature is None or temperature < 0:
            raise OptionError(
                "max_new_tokens must be an integer that is at least 1 and temperature a number that is at least 0, got "
                f"{self.max_new_tokens!r} and {self.temperature!r}."
            )
        reserved = [name for name, _ in self.options if name in _RESERVED]
        if reserved:
            raise OptionError(
                f"generation_kwargs contains {reserved}, which the steered model sets itself. Use the settings "
                "max_new_tokens and stop, and batch or stream."
            )
        if not all(isinstance(stop, str) and stop for stop in self.stop):
            raise OptionError(f"stop is {list(self.stop)!r}. Each stop string must be a string that is not empty.")
        object.__setattr__(self, "max_new_tokens", max_new_tokens)
        object.__setattr__(self, "temperature", temperature)

    def for_generate(self) -> dict[str, Any]:
        """The keyword arguments of `model.generate`, except for the number of tokens and the stop strings."""
        sampled = {"do_sample": True, "temperature": self.temperature} if self.temperature > 0 else {"do_sample": False}
        return sampled | dict(self.options)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt as token ids, with the strengths and the settings for its answer."""

    ids: tuple[int, ...]
    strengths: Mapping[str, float]
    settings: GenerationSettings


@dataclass(frozen=True)
class Answer:
    """The text that the model generated, without a stop string.

    Attributes:
        finished: whether the model ended the answer itself or reached a stop string. False means that the answer
            reached the maximum number of new tokens.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finished: bool

    @property
    def finish_reason(self) -> str:
        """The name that LangChain's users know from other models."""
        return "stop" if self.finished else "length"


class Generator:
    """Generates steered answers with one model and its tokenizer."""

    def __init__(self, chat: ChatTokenizer, behaviors: SteeredBehaviors) -> None:
        self.chat = chat
        self.tokenizer = chat.tokenizer
        self.behaviors = behaviors
        self.window: int | None = getattr(text_config(behaviors.model), "max_position_embeddings", None)

    def request(
        self, text: str, strengths: Mapping[str, float], settings: GenerationSettings, *, special: bool
    ) -> GenerationRequest:
        """Makes a request from a rendered prompt. The answer may fill the model's context, but not exceed it.

        Args:
            special: whether the tokenizer adds its special tokens. A plain text needs them; the chat template has
                already written them.

        Raises:
            OptionError: the prompt is empty, or leaves no room in the model's context.
        """
        ids = self.chat.ids(text, special=special)
        if not ids:
            raise OptionError("The prompt is empty: there is nothing to answer.")
        if self.window is not None:
            room = self.window - len(ids)
            if room < 1:
                raise OptionError(
                    f"The prompt has {len(ids)} tokens; the model's context holds {self.window}. Shorten it."
                )
            settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
        return GenerationRequest(ids, strengths, settings)

    def answers(self, requests: Sequence[GenerationRequest]) -> list[Answer]:
        """The answers to requests, in the same order.

        Requests with equal settings are one batch for the model. Each row has its own strengths.
        """
        answers: dict[int, Answer] = {}
        left = list(range(len(requests)))
        while left:
            settings = requests[left[0]].settings
            # Settings are compared, not hashed, because options may be lists.
            numbers = [number for number in left if requests[number].settings == settings]
            left = [number for number in left if number not in numbers]
            batch = [requests[number] for number in numbers]
            for number, request, (row, finished) in zip(numbers, batch, self.generate(batch), strict=True):
                kept = "".join(before_stop([self.decode(row)], settings.stop))
                answers[number] = Answer(kept, len(request.ids), len(row), finished)
        return [answers[number] for number in range(len(requests))]

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        streamer: BaseStreamer | None = None,
        cancelled: Callable[..., bool] | None = None,
    ) -> list[tuple[list[int], bool]]:
        """The new tokens for each request, and whether its answer is finished. All requests have the same settings.

        Args:
            cancelled: ends the generation when it returns True. It is called after every token.
        """
        settings = requests[0].settings
        criteria = StoppingCriteriaList([_StopStrings(self.decode, settings.stop)] if settings.stop else [])
        if cancelled is not None:
            criteria.append(cancelled)
        injector = self.behaviors.injector([request.strengths for request in requests])
        with injector.scoped() if injector is not None else contextlib.nullcontext():
            rows = continue_rows(
                self.behaviors.model,
                self.tokenizer,
                [request.ids for request in requests],
                settings.max_new_tokens,
                stopping_criteria=criteria,
                streamer=streamer,
                **settings.for_generate(),
            )
        return [(row, len(row) < settings.max_new_tokens) for row in rows]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


class SharedRun(Generator):
    """A generator that knows a list of requests beforehand. It answers all of them when the first one is asked for.

    If the model fails, its error is raised for each of these requests. Any other request is answered on its own.
    """

    def __init__(self, generator: Generator, requests: Sequence[GenerationRequest]) -> None:
        super().__init__(generator.chat, generator.behaviors)
        self._waiting = list(requests)
        self._answered: list[tuple[GenerationRequest, Answer]] = []
        self._error: Exception | None = None

    def answers(self, requests: Sequence[GenerationRequest]) -> list[Answer]:
        """The answers to requests, in the same order. Equal requests take their answers in the order of the list."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                self._answered = list(zip(waiting, super().answers(waiting), strict=True))
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return [self._answer(request) for request in requests]

    def _answer(self, request: GenerationRequest) -> Answer:
        for number, (known, answer) in enumerate(self._answered):
            if known == request:  # each answer is given once, so that equal requests get answers of their own
                del self._answered[number]
                return answer
        return super().answers([request])[0]


class AnswerStream:
    """Iterates over the pieces of one answer. `answer` is set when the last piece has been read.

    The model runs and is steered in a separate thread. Closing the iterator early stops the model.
    """

    def __init__(self, generator: Generator, request: GenerationRequest) -> None:
        self._generator = generator
        self._request = request
        self.answer: Answer | None = None

    def __iter__(self) -> Iterator[str]:
        generator, request = self._generator, self._request
        rows: list[tuple[list[int], bool]] = []

        def write(streamer: BaseStreamer, cancelled: Callable[..., bool]) -> None:
            rows.extend(generator.generate([request], streamer, cancelled))

        ends = end_tokens(generator.behaviors.model, generator.tokenizer)
        text = ""
        with contextlib.closing(stream_text(write, generator.decode, ends, contextvars.copy_context())) as pieces:
            for piece in before_stop(pieces, request.settings.stop):
                text += piece
                yield piece
        ((row, finished),) = rows
        self.answer = Answer(text, len(request.ids), len(row), finished)


def before_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The text before the first stop string.

    Text that may be the beginning of a stop string is held back until it is clear whether it is one. All pieces are
    read, also those after a stop string.
    """
    held = ""
    stopped = False
    for piece in pieces:
        if stopped:
            continue
        held += piece
        places = [place for stop in stops if (place := held.find(stop)) >= 0]
        stopped = bool(places)
        safe = min(places) if stopped else len(held) - _possible_beginning(held, stops)
        if safe:
            yield held[:safe]
        held = "" if stopped else held[safe:]
    if held:
        yield held


def _possible_beginning(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    lengths = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(lengths, default=0)


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
    """Ends a row at a stop string.

    The `stop_strings` of transformers also match in the prompt. They also go through the whole vocabulary before the
    first token, which takes longer than a short answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]) -> None:
        self._decode = decode
        self._stops = stops
        # The number of tokens in which a stop string ends: each token is at least one byte.
        self._reach = max(len(stop.encode()) for stop in stops) + 1
        self._start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        """Whether each row has ended, as booleans of shape [batch]."""
        if self._start is None:  # the first call comes after the first new token
            self._start = input_ids.shape[1] - 1
        tails = input_ids[:, max(self._start, input_ids.shape[1] - self._reach) :].tolist()
        ended = [any(stop in text for stop in self._stops) for text in map(self._decode, tails)]
        return torch.tensor(ended, device=input_ids.device)
