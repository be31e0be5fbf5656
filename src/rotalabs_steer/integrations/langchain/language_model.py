"""The base class of the chat model and the plain-text model: the loaded model, settings, strengths and batches."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.base import LanguageModelOutputVar
from langchain_core.runnables import ensure_config
from langchain_core.runnables.config import get_config_list
from pydantic import AliasChoices, Field, PrivateAttr

from rotalabs_steer.arguments import as_integer, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain.behaviors import SteeredBehaviors
from rotalabs_steer.integrations.langchain.generation import GenerationSettings, Generator, SharedRun

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from langchain_core.language_models import LanguageModelInput
    from langchain_core.runnables import RunnableConfig

    from rotalabs_steer.integrations.langchain.generation import GenerationRequest
    from rotalabs_steer.steering.acting_layers import Vectors

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_READ_BY_LANGCHAIN = ("stop", "stream", "structured_output_format", "ls_structured_output_format")


class SteeredLanguageModel(BaseLanguageModel[LanguageModelOutputVar]):
    """A LangChain language model that is steered. Each call can have its own strengths.

    Attributes:
        model_name: a Hugging Face id or a folder. It is not needed if `model` and `tokenizer` are given.
        steering_configs: `{behavior: {"vector_path": ..., "strength": 1.0, "layer": None}}`. A loaded vector or set is
            given as `vectors` instead of `vector_path`.
        device: "auto" chooses CUDA, else MPS, else the CPU.
        torch_dtype: "auto" (the dtype in which the model was saved), "float32", "bfloat16" or "float16".
        max_new_tokens: the maximum number of new tokens. LangChain's name `max_tokens` is accepted too.
        temperature: 0 means greedy decoding, as `do_sample=False` does.
        stop: strings that end an answer and are not part of it. The stop strings of a call replace them.
        max_batch_size: how many inputs of `batch` are answered in one run of the model.
        injection_mode, check_model: as in `MultiVectorInjector`.
        generation_kwargs: further arguments of `model.generate`, such as `top_p`.
        template_options: options of the chat template, such as `{"enable_thinking": False}`.
        model, tokenizer: a loaded model and its tokenizer, instead of `model_name`. Several steered models can share
            them.
    """

    model_name: str = ""
    steering_configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    device: str = "auto"
    torch_dtype: str = "auto"
    max_new_tokens: int = Field(default=256, ge=1, validation_alias=AliasChoices("max_new_tokens", "max_tokens"))
    temperature: float = Field(default=0.7, ge=0)
    do_sample: bool = True
    stop: list[str] = Field(default_factory=list)
    max_batch_size: int = Field(default=16, ge=1)
    injection_mode: Any = "all"
    check_model: bool = True
    generation_kwargs: dict[str, Any] = Field(default_factory=dict)
    template_options: dict[str, Any] = Field(default_factory=dict)
    model: Any = Field(default=None, exclude=True, repr=False)
    tokenizer: Any = Field(default=None, exclude=True, repr=False)

    _behaviors: SteeredBehaviors = PrivateAttr()
    _generator: Generator = PrivateAttr()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # The rest is not a pydantic validator, because pydantic would wrap its errors and print the whole model.
        if isinstance(self.model, str):
            raise OptionError(f"model is the string {self.model!r}; give a name as model_name, or a loaded model.")
        if self.model is None:
            self.model, tokenizer = _load(self.model_name, self.device, self.torch_dtype)
            self.tokenizer = self.tokenizer or tokenizer
        elif self.tokenizer is None:
            raise OptionError("A loaded model needs its tokenizer: give tokenizer as well.")
        self.model_name = self.model_name or getattr(self.model.config, "name_or_path", "") or "a loaded model"
        self._behaviors = SteeredBehaviors(
            self.model, self.steering_configs, self.injection_mode, check_model=self.check_model
        )
        self._generator = Generator(ChatTokenizer.of(self.tokenizer, self.template_options), self._behaviors)

    @property
    def strengths(self) -> dict[str, float]:
        """The present strength of each behaviour."""
        return self._behaviors.strengths

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes a behaviour's strength for calls that begin later. Raises KeyError for an unknown behaviour."""
        self._behaviors.set_strength(behavior, strength)

    def get_strength(self, behavior: str) -> float:
        """The present strength of a behaviour. Raises KeyError for an unknown one."""
        return self._behaviors.get_strength(behavior)

    def disable_steering(self, behavior: str | None = None) -> None:
        """Sets the strength of one behaviour, or of all, to 0, which leaves the model unsteered."""
        for name in self._behaviors.strengths if behavior is None else [behavior]:
            self._behaviors.set_strength(name, 0.0)

    def enable_steering(self, behavior: str, strength: float = 1.0) -> None:
        """Sets the strength of a behaviour."""
        self._behaviors.set_strength(behavior, strength)

    def add_vector(
        self, behavior: str, vector: str | os.PathLike[str] | Vectors, strength: float = 1.0, layer: int | None = None
    ) -> None:
        """Adds a behaviour, or replaces its vectors, while the model is in use.

        Raises:
            VectorError, LayerError, ModelMismatchError: the vectors do not fit the model. Nothing has changed.
        """
        self._behaviors.add(behavior, vector, strength, layer)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> LanguageModelOutputVar:
        """One answer. `config={"configurable": {"strengths": {...}}}` or `strengths={...}` apply to this call only."""
        return super().invoke(input, config, **self._with_strengths(config, kwargs))  # type: ignore[return-value, safe-super]

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> LanguageModelOutputVar:
        """Does the same as `invoke`, for asyncio."""
        return await super().ainvoke(input, config, **self._with_strengths(config, kwargs))  # type: ignore[return-value]

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """The answer of `invoke`, piece by piece."""
        yield from super().stream(input, config, **self._with_strengths(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Does the same as `stream`, for asyncio."""
        async for piece in super().astream(input, config, **self._with_strengths(config, kwargs)):
            yield piece

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[LanguageModelOutputVar]:
        """Answers to many inputs, up to `max_batch_size` of them in one run of the model.

        A list of configs gives each input its own strengths. `max_concurrency` in the first config can make the runs
        smaller. An input that cannot be rendered raises its error before the model runs. With `return_exceptions`, the
        error is returned in place of the answer, and the other inputs are answered.
        """
        answers: dict[int, Any] = {}
        for number, model, arguments, options in self._calls(inputs, config, kwargs):
            try:
                answers[number] = model.invoke(*arguments, **options)
            except Exception as error:
                if not return_exceptions:
                    raise
                answers[number] = error
        return [answers[number] for number in sorted(answers)]

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[LanguageModelOutputVar]:
        """Does the same as `batch`, for asyncio."""
        answers: dict[int, Any] = {}
        for number, model, arguments, options in self._calls(inputs, config, kwargs):
            try:
                answers[number] = await model.ainvoke(*arguments, **options)
            except Exception as error:
                if not return_exceptions:
                    raise
                answers[number] = error
        return [answers[number] for number in sorted(answers)]

    def _calls(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        options: dict[str, Any],
    ) -> Iterator[tuple[int, Any, tuple[LanguageModelInput, RunnableConfig], dict[str, Any]]]:
        """The calls of a batch: the number of the input, the model to invoke, its arguments and its options.

        Each input is one ordinary call for LangChain, with its own callbacks, cache look-up and error. Inputs that are
        answered in one run share a copy of this model, whose generator answers all of them at the first call.
        """
        given = list_of("inputs", inputs)
        configs = get_config_list(config, len(given))
        size = self._run_size(configs)
        calls: dict[int, tuple[GenerationRequest, dict[str, Any]]] = {}
        for number, (each, one) in enumerate(zip(given, configs, strict=True)):
            try:
                chosen = self._with_strengths(one, options)
                calls[number] = self._request(each, chosen.get("stop"), chosen), chosen
            except Exception:  # the ordinary call raises the error again, so that the callbacks receive it
                yield number, self, (each, one), options
        for start in range(0, len(calls), size):
            numbers = list(calls)[start : start + size]
            model = self.model_copy()
            model._generator = SharedRun(self._generator, [calls[number][0] for number in numbers])
            for number in numbers:
                yield number, model, (given[number], configs[number]), calls[number][1]

    def _run_size(self, configs: Sequence[RunnableConfig]) -> int:
        """How many inputs of a batch are answered in one run of the model.

        Raises:
            OptionError: a limit is not an integer that is at least 1.
        """
        limits = [self.max_batch_size, *(one.get("max_concurrency") for one in configs[:1])]
        sizes = [limit for limit in limits if limit is not None]
        if any(as_integer(size) is None or size < 1 for size in sizes):
            raise OptionError(
                f"max_batch_size and max_concurrency are {sizes}; each must be an integer that is at least 1."
            )
        return min(sizes)

    @abstractmethod
    def _request(
        self, given: LanguageModelInput, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> GenerationRequest:
        """The request that `invoke` makes from an input and the options of a call."""

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """Everything that decides the answers. LangChain's caches use it to tell models apart."""
        return {
            "model_name": self.model_name,
            "vectors": self._behaviors.fingerprint(),
            "strengths": self.strengths,
            "injection_mode": repr(self.injection_mode),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "do_sample": self.do_sample,
            "default_stop": self.stop,
            "generation_kwargs": self.generation_kwargs,
            "template_options": dict(self._generator.chat.template_options),
        }

    def _with_strengths(self, config: RunnableConfig | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a call with a strength for every behaviour: from `options`, the config, or the present one."""
        # This happens in `invoke` and `stream`, because LangChain passes their options on to `_generate`, but not the
        # config.
        configured = ensure_config(config).get("configurable", {}).get("strengths")
        return {**options, "strengths": self._behaviors.merged(configured, options.get("strengths"))}

    def _settings(self, stop: Sequence[str] | None, options: Mapping[str, Any], *stops: str) -> GenerationSettings:
        """The settings of one call. `stops` are stop strings in addition to those of the call or the model.

        Raises:
            OptionError: there is an unknown option, which would have no effect.
        """
        options = dict(options)
        max_new_tokens = options.pop("max_new_tokens", options.pop("max_tokens", self.max_new_tokens))
        temperature = options.pop("temperature", self.temperature)
        greedy = not options.pop("do_sample", self.do_sample)
        more = {**self.generation_kwargs, **options.pop("generation_kwargs", {})}
        for name in _READ_BY_LANGCHAIN:
            options.pop(name, None)
        if options:
            raise OptionError(
                f"Unknown options {sorted(options)}. A call takes strengths, stop, max_new_tokens, temperature, "
                "do_sample, tools, tool_choice and generation_kwargs."
            )
        all_stops = tuple(dict.fromkeys((*list_of("stop", self.stop if stop is None else stop), *stops)))
        return GenerationSettings(
            max_new_tokens, 0.0 if greedy else temperature, all_stops, tuple(sorted(more.items()))
        )


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rotalabs_steer.model.decoder import fastest_device

    if not name:
        raise OptionError("Give model_name, or a loaded model with its tokenizer.")
    if dtype not in _DTYPES:
        raise OptionError(f"torch_dtype is {dtype!r}; use one of {_DTYPES}.")
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    return model.to(fastest_device() if device == "auto" else device).eval(), AutoTokenizer.from_pretrained(name)
