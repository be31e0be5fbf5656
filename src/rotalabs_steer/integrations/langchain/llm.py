"""A plain-text model whose every call is steered."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list
from pydantic import ConfigDict

from rotalabs_steer.integrations.langchain.gathering import Gathering, gathered
from rotalabs_steer.integrations.langchain.steered_model import SteeredModelFields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.runnables import RunnableConfig

    from rotalabs_steer.integrations.langchain.generation import Answer, Request

_LANGCHAINS_OWN = {"callbacks", "tags", "metadata", "run_name", "run_id"}
_CALL: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("rotalabs_steer_llm_call")


class SteeredLLM(SteeredModelFields, BaseLLM):
    """A LangChain model that goes on with a text, steered. For base models; conversations are for `SteeredChatModel`.

    Settings, strengths for single calls and batches are as there.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    @property
    def _llm_type(self) -> str:
        return "steered_llm"

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """What follows a text. `config={"configurable": {"strengths": {...}}}` is for this call only."""
        return super().invoke(input, config, **self._with_strengths(config, kwargs))

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """`invoke` for asyncio."""
        return await super().ainvoke(input, config, **self._with_strengths(config, kwargs))

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[str]:
        """The text of `invoke`, piece by piece."""
        yield from super().stream(input, config, **self._with_strengths(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        """`stream` for asyncio."""
        async for piece in super().astream(input, config, **self._with_strengths(config, kwargs)):
            yield piece

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """What follows each text, in runs of the model of `max_batch_size`; each config may have its own strengths."""
        texts: dict[int, str] = {}
        for gathering, groups in self._parts(inputs, config, kwargs):

            def run(group: _Group, gathering: Gathering = gathering) -> list[str]:
                with gathering.member():
                    return BaseLLM.batch(self, group.inputs, group.configs, **group.options)

            with ContextThreadPoolExecutor(max_workers=len(groups)) as executor:
                for group, written in zip(groups, executor.map(run, groups), strict=True):
                    texts |= zip(group.numbers, written, strict=True)
        return [texts[number] for number in range(len(inputs))]

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`batch` for asyncio."""
        texts: dict[int, str] = {}
        for gathering, groups in self._parts(inputs, config, kwargs):

            async def run(group: _Group, gathering: Gathering = gathering) -> list[str]:
                with gathering.member():
                    return await BaseLLM.abatch(self, group.inputs, group.configs, **group.options)

            for group, written in zip(groups, await asyncio.gather(*map(run, groups)), strict=True):
                texts |= zip(group.numbers, written, strict=True)
        return [texts[number] for number in range(len(inputs))]

    def generate(self, prompts: list[str], stop: list[str] | None = None, *args: Any, **options: Any) -> LLMResult:
        """What LangChain makes of its calls."""
        with _known_to_the_cache(options):
            return super().generate(prompts, stop, *args, **options)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **options: Any
    ) -> LLMResult:
        """`generate` for asyncio."""
        with _known_to_the_cache(options):
            return await super().agenerate(prompts, stop, *args, **options)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "call": _CALL.get({})}

    def _parts(
        self,
        inputs: Sequence[LanguageModelInput],
        config: RunnableConfig | Sequence[RunnableConfig] | None,
        options: dict[str, Any],
    ) -> Iterator[tuple[Gathering, list[_Group]]]:
        """The inputs of each run of the model, those of equal strengths as one call of LangChain.

        Equal, because LangChain's cache knows a call by one set of options and its text.
        """
        configs = get_config_list(config, len(inputs)) if inputs else []
        size = min(self.max_batch_size, (configs[0].get("max_concurrency") if configs else None) or len(inputs) or 1)
        for start in range(0, len(inputs), size):
            groups: dict[tuple[tuple[str, float], ...], _Group] = {}
            for number in range(start, min(start + size, len(inputs))):
                chosen = self._with_strengths(configs[number], options)
                group = groups.setdefault(tuple(chosen["strengths"].items()), _Group(chosen))
                group.add(number, inputs[number], configs[number])
            yield Gathering(len(groups), self._generator.answers), list(groups.values())

    def _with_strengths(self, config: RunnableConfig | None, options: Mapping[str, Any]) -> dict[str, Any]:
        return {**options, "strengths": self._call_strengths(config, options.get("strengths"))}

    def _requests(self, prompts: Sequence[str], stop: Sequence[str] | None, options: dict[str, Any]) -> list[Request]:
        options = dict(options)
        strengths = self._steering.merged(options.pop("strengths", None))
        sampling = self._sampling(stop, options)
        return [self._generator.request(prompt, strengths, sampling, special=True) for prompt in prompts]

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs)
        future = gathered(requests)
        return _result(requests, self._generator.answers(requests) if future is None else future.result())

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs)
        future = gathered(requests)
        if future is None:
            answers = await asyncio.to_thread(self._generator.answers, requests)
        else:
            answers = await asyncio.wrap_future(future)
        return _result(requests, answers)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        (request,) = self._requests([prompt], stop, kwargs)
        for piece in self._generator.stream(request):
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


@contextlib.contextmanager
def _known_to_the_cache(options: Mapping[str, Any]) -> Iterator[None]:
    """LangChain's cache knows a plain-text model by its settings only: here, those of the call count among them."""
    token = _CALL.set({name: value for name, value in sorted(options.items()) if name not in _LANGCHAINS_OWN})
    try:
        yield
    finally:
        _CALL.reset(token)


class _Group:
    """Inputs of a batch that have the same options."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.numbers: list[int] = []
        self.inputs: list[LanguageModelInput] = []
        self.configs: list[RunnableConfig] = []

    def add(self, number: int, given: LanguageModelInput, config: RunnableConfig) -> None:
        self.numbers.append(number)
        self.inputs.append(given)
        self.configs.append({**config, "max_concurrency": None})


def _result(requests: Sequence[Request], answers: Sequence[Answer]) -> LLMResult:
    generations = [
        [
            Generation(
                text=answer.text,
                generation_info={
                    "finish_reason": "stop" if answer.finished else "length",
                    "strengths": dict(request.strengths),
                },
            )
        ]
        for request, answer in zip(requests, answers, strict=True)
    ]
    return LLMResult(generations=generations)
