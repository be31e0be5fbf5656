"""A LangChain model for plain text that is steered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import ConfigDict, PrivateAttr

from rotalabs_steer.integrations.langchain.generation import AnswerStream
from rotalabs_steer.integrations.langchain.language_model import SteeredLanguageModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput

    from rotalabs_steer.integrations.langchain.generation import Answer, GenerationRequest

_NOT_IN_THE_CACHE = {"callbacks", "tags", "metadata", "run_name", "run_id"}


class SteeredLLM(SteeredLanguageModel[str], BaseLLM):
    """A LangChain model that continues a text while it is steered.

    It is meant for base models; use `SteeredChatModel` for conversations. Settings, batches and the strengths of single
    calls are the same in both.
    """

    model_config = ConfigDict(extra="forbid")

    _options: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "steered_llm"

    def generate(self, prompts: list[str], stop: list[str] | None = None, *args: Any, **options: Any) -> LLMResult:
        """LangChain's `generate`, with a cache that distinguishes the options of calls."""
        return BaseLLM.generate(self._with_options(options), prompts, stop, *args, **options)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, *args: Any, **options: Any
    ) -> LLMResult:
        """Does the same as `generate`, for asyncio."""
        return await BaseLLM.agenerate(self._with_options(options), prompts, stop, *args, **options)

    def _with_options(self, options: Mapping[str, Any]) -> SteeredLLM:
        """A copy of this model that has the options of a call among its identifying parameters.

        LangChain's cache distinguishes plain-text models only by these parameters, not by the options of a call.
        """
        copy = self.model_copy()
        copy._options = {name: value for name, value in sorted(options.items()) if name not in _NOT_IN_THE_CACHE}
        return copy

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "call": self._options}

    def _request(
        self, given: LanguageModelInput, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> GenerationRequest:
        (request,) = self._requests([self._convert_input(given).to_string()], stop, options)
        return request

    def _requests(
        self, prompts: Sequence[str], stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> list[GenerationRequest]:
        options = dict(options)
        strengths = self._behaviors.merged(options.pop("strengths", None))
        settings = self._settings(stop, options)
        return [self._generator.request(prompt, strengths, settings, special=True) for prompt in prompts]

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs)
        return _result(requests, self._generator.answers(requests))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        requests = self._requests(prompts, stop, kwargs)
        return _result(requests, await asyncio.to_thread(self._generator.answers, requests))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        (request,) = self._requests([prompt], stop, kwargs)
        for piece in AnswerStream(self._generator, request):
            chunk = GenerationChunk(text=piece)
            if run_manager is not None:  # LangChain leaves this to `_stream` of plain-text models
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


def _result(requests: Sequence[GenerationRequest], answers: Sequence[Answer]) -> LLMResult:
    generations = []
    for request, answer in zip(requests, answers, strict=True):
        info = {"finish_reason": answer.finish_reason, "strengths": dict(request.strengths)}
        generations.append([Generation(text=answer.text, generation_info=info)])
    return LLMResult(generations=generations)
