"""A chat model whose every call is steered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables.config import get_config_list
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict

from rotalabs_steer.integrations.langchain.gathering import Gathering, gathered
from rotalabs_steer.integrations.langchain.generation import up_to
from rotalabs_steer.integrations.langchain.messages import CALL_END, CALL_START, RESULT_START, render_chat
from rotalabs_steer.integrations.langchain.steered_model import SteeredModelFields
from rotalabs_steer.integrations.langchain.tool_calls import (
    ParsedAnswer,
    begins_like_json,
    forced_beginning,
    parse_answer,
    tool_names,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LangSmithParams, LanguageModelInput
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.tools import BaseTool

    from rotalabs_steer.integrations.langchain.generation import Answer, Request


class SteeredChatModel(SteeredModelFields, BaseChatModel):
    """A LangChain chat model whose answers are steered.

    chat = SteeredChatModel(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        steering_configs={"formality": {"vector_path": "vectors/formality", "strength": 1.0}},
    )
    chat.set_strength("formality", 0.5)  # for every later call
    chat.invoke("Hello!", config={"configurable": {"strengths": {"formality": -1.0}}})  # for this call

    A call is steered in its own thread or task, so calls at different strengths may run at the same time. `batch` and
    `abatch` answer up to `max_batch_size` inputs in one run of the model, each at its own strengths. See
    `SteeredModelFields` for the settings.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    streaming: bool = False
    """Whether `invoke` streams inside, for callbacks that want each piece."""

    @classmethod
    def sharing(cls, other: SteeredModelFields) -> SteeredChatModel:
        """A chat model on the model, vectors and strengths of another: what changes in one changes in both."""
        fields = {name: getattr(other, name) for name in SteeredModelFields.model_fields}
        chat = cls(**fields | {"steering_configs": {}})
        chat._steering, chat._generator = other._steering, other._generator
        return chat

    @property
    def _llm_type(self) -> str:
        return "steered_chat_model"

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """One answer. `config={"configurable": {"strengths": {...}}}`, or `strengths={...}`, is for this call only."""
        gathering: Gathering | None = kwargs.pop("_gathering", None)
        if gathering is not None:
            with gathering.member():
                return self.invoke(input, config, **kwargs)
        kwargs["strengths"] = self._call_strengths(config, kwargs.get("strengths"))
        return super().invoke(input, config, **kwargs)

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke` for asyncio."""
        gathering: Gathering | None = kwargs.pop("_gathering", None)
        if gathering is not None:
            with gathering.member():
                return await self.ainvoke(input, config, **kwargs)
        kwargs["strengths"] = self._call_strengths(config, kwargs.get("strengths"))
        return await super().ainvoke(input, config, **kwargs)

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """The answer of `invoke`, piece by piece."""
        kwargs["strengths"] = self._call_strengths(config, kwargs.get("strengths"))
        yield from super().stream(input, config, **kwargs)

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` for asyncio."""
        kwargs["strengths"] = self._call_strengths(config, kwargs.get("strengths"))
        async for chunk in super().astream(input, config, **kwargs):
            yield chunk

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers to many inputs, in runs of the model of `max_batch_size`; a list of configs gives each its own
        strengths. `max_concurrency` in the first config makes the runs smaller."""
        answers: list[AIMessage] = []
        for part, configs, gathering in self._parts(inputs, config):
            answers += super().batch(part, configs, **kwargs, _gathering=gathering)
        return answers

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch` for asyncio."""
        answers: list[AIMessage] = []
        for part, configs, gathering in self._parts(inputs, config):
            answers += await super().abatch(part, configs, **kwargs, _gathering=gathering)
        return answers

    def _parts(
        self, inputs: Sequence[LanguageModelInput], config: RunnableConfig | Sequence[RunnableConfig] | None
    ) -> Iterator[tuple[list[LanguageModelInput], list[RunnableConfig], Gathering]]:
        configs = get_config_list(config, len(inputs)) if inputs else []
        size = min(self.max_batch_size, (configs[0].get("max_concurrency") if configs else None) or len(inputs) or 1)
        for start in range(0, len(inputs), size):
            part = list(inputs[start : start + size])
            together: list[RunnableConfig] = [
                {**one, "max_concurrency": len(part)} for one in configs[start : start + size]
            ]
            yield part, together, Gathering(len(part), self._generator.answers)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools, declared through the tokenizer's chat template.

        Args:
            tool_choice: "auto"; "any" or "required", which make the model begin with a call; a tool's name, which makes
                it call that one; or "none".

        Raises:
            OptionError: `tool_choice` names no tool.
        """
        declared = [convert_to_openai_tool(tool) for tool in tools]
        forced_beginning(tool_choice, tool_names(declared))
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=declared, **chosen, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _Call(self, messages, stop, kwargs)
        future = gathered([call.request])
        (answer,) = self._generator.answers([call.request]) if future is None else future.result()
        return call.result(answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _Call(self, messages, stop, kwargs)
        future = gathered([call.request])
        if future is None:
            (answer,) = await asyncio.to_thread(self._generator.answers, [call.request])
        else:
            (answer,) = await asyncio.wrap_future(future)
        return call.result(answer)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = _Call(self, messages, stop, kwargs)
        stream = self._generator.stream(call.request)
        for text in call.visible(stream):
            yield ChatGenerationChunk(message=AIMessageChunk(content=text))
        assert stream.answer is not None
        yield call.last_chunk(stream.answer)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "rotalabs_steer"
        params["ls_max_tokens"] = kwargs.get("max_new_tokens", kwargs.get("max_tokens", self.max_new_tokens))
        if self.stop and not stop:
            params["ls_stop"] = self.stop
        return params


class _Call:
    """One call of a chat model: its request, and its answer as a message."""

    def __init__(
        self,
        chat: SteeredChatModel,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        options: dict[str, Any],
    ) -> None:
        options = dict(options)
        self._strengths = chat._steering.merged(options.pop("strengths", None))
        choice = options.pop("tool_choice", None)
        tools = [] if choice == "none" else [convert_to_openai_tool(tool) for tool in options.pop("tools", None) or ()]
        options.pop("tools", None)
        self._model_name = chat.model_name
        self._names = tool_names(tools)
        self._forced = forced_beginning(choice, self._names)
        ends = () if not tools else (RESULT_START,) if self._forced is None else (RESULT_START, CALL_END)
        sampling = chat._sampling(stop, options, *ends)
        prompt = render_chat(chat._generator.chat, messages, tools) + (self._forced or "")
        self.request: Request = chat._generator.request(prompt, self._strengths, sampling, special=False)
        self._shown = ""

    def result(self, answer: Answer) -> ChatResult:
        """The whole answer."""
        parsed = self._parsed(answer)
        message = AIMessage(
            content=parsed.content,
            tool_calls=parsed.tool_calls,
            invalid_tool_calls=parsed.invalid_tool_calls,
            usage_metadata=_usage(answer),
            response_metadata=self._facts(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=self._facts(answer))])

    def visible(self, pieces: Iterable[str]) -> Iterator[str]:
        """What can be shown while it is written. What may be a call is held back to the end."""
        if not self._names:
            yield from pieces
            return
        written = ""
        for piece in up_to(pieces, [CALL_START]):
            written += piece
            if self._forced is None and not begins_like_json(written):
                yield written[len(self._shown) :]
                self._shown = written

    def last_chunk(self, answer: Answer) -> ChatGenerationChunk:
        """What was held back, the calls, and the facts about the answer."""
        parsed = self._parsed(answer)
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(parsed.tool_calls)
        ]
        # LangChain completes the unfinished JSON of chunks: without the tag, this would become a call of no tool.
        chunks += [
            tool_call_chunk(name=None, args=f"{CALL_START}{call['args']}", id=call["id"], index=len(chunks) + index)
            for index, call in enumerate(parsed.invalid_tool_calls)
        ]
        message = AIMessageChunk(
            content=parsed.content[len(self._shown) :] if self._names else "",
            tool_call_chunks=chunks,
            usage_metadata=_usage(answer),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info=self._facts(answer))

    def _parsed(self, answer: Answer) -> ParsedAnswer:
        if not self._names:
            return ParsedAnswer(answer.text, [], [])
        return parse_answer((self._forced or "") + answer.text, self._names)

    def _facts(self, answer: Answer) -> dict[str, Any]:
        finish = "stop" if answer.finished else "length"
        return {"model_name": self._model_name, "finish_reason": finish, "strengths": dict(self._strengths)}


def _usage(answer: Answer) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.new_tokens,
        total_tokens=answer.prompt_tokens + answer.new_tokens,
    )
