"""A LangChain chat model that is steered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict

from rotalabs_steer.integrations.langchain.generation import AnswerStream, before_stop
from rotalabs_steer.integrations.langchain.language_model import SteeredLanguageModel
from rotalabs_steer.integrations.langchain.messages import CALL_END, CALL_START, RESULT_START, render_chat
from rotalabs_steer.integrations.langchain.tool_calls import (
    ParsedAnswer,
    forced_prefix,
    may_be_json_call,
    parse_answer,
    tool_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LangSmithParams, LanguageModelInput
    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

    from rotalabs_steer.integrations.langchain.generation import Answer, GenerationRequest


class SteeredChatModel(SteeredLanguageModel[AIMessage], BaseChatModel):
    """A LangChain chat model whose answers are steered.

    chat = SteeredChatModel(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        steering_configs={"formality": {"vector_path": "vectors/formality", "strength": 1.0}},
    )
    chat.set_strength("formality", 0.5)  # for every later call
    chat.invoke("Hello!", config={"configurable": {"strengths": {"formality": -1.0}}})  # for this call

    Each call is steered in its own thread or task, so calls with different strengths can run at the same time. `batch`
    and `abatch` answer up to `max_batch_size` inputs in one run of the model, each with its own strengths.
    `SteeredLanguageModel` lists the settings.
    """

    model_config = ConfigDict(extra="forbid")

    streaming: bool = False
    """Whether `invoke` generates a stream, so that callbacks receive each piece."""

    @classmethod
    def sharing(cls, other: SteeredLanguageModel[Any]) -> SteeredChatModel:
        """A chat model that shares the model, vectors and strengths of another one. Changes of one change both."""
        fields = {name: getattr(other, name) for name in SteeredLanguageModel.model_fields}
        chat = cls(**fields | {"steering_configs": {}})  # without configs, because the vectors are not loaded again
        chat._behaviors, chat._generator = other._behaviors, other._generator
        return chat

    @property
    def _llm_type(self) -> str:
        return "steered_chat_model"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools, which the tokenizer's chat template declares to it.

        Args:
            tool_choice: "auto" leaves the choice to the model. "any" and "required" make the model begin with a call.
                The name of a tool makes it call that tool. "none" hides the tools.

        Raises:
            OptionError: `tool_choice` does not name one of the tools.
        """
        declared = [convert_to_openai_tool(tool) for tool in tools]
        forced_prefix(tool_choice, tool_names(declared))
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=declared, **chosen, **kwargs)

    def _request(
        self, given: LanguageModelInput, stop: Sequence[str] | None, options: Mapping[str, Any]
    ) -> GenerationRequest:
        return _Call(self, self._convert_input(given).to_messages(), stop, options).request

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _Call(self, messages, stop, kwargs)
        (answer,) = self._generator.answers([call.request])
        return call.result(answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = _Call(self, messages, stop, kwargs)
        (answer,) = await asyncio.to_thread(self._generator.answers, [call.request])
        return call.result(answer)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = _Call(self, messages, stop, kwargs)
        stream = AnswerStream(self._generator, call.request)
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
    """One call of a chat model: it makes the request, and turns the answer into messages."""

    def __init__(
        self,
        chat: SteeredChatModel,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> None:
        options = dict(options)
        self._strengths = chat._behaviors.merged(options.pop("strengths", None))
        choice = options.pop("tool_choice", None)
        tools = [] if choice == "none" else [convert_to_openai_tool(tool) for tool in options.pop("tools", None) or ()]
        options.pop("tools", None)
        self._model_name = chat.model_name
        self._names = tool_names(tools)
        self._prefix = forced_prefix(choice, self._names)
        # An answer with tools ends before it invents a tool's result. A forced answer ends after its call.
        stops = () if not tools else (RESULT_START,) if self._prefix is None else (RESULT_START, CALL_END)
        settings = chat._settings(stop, options, *stops)
        prompt = render_chat(chat._generator.chat, messages, tools) + (self._prefix or "")
        self.request: GenerationRequest = chat._generator.request(prompt, self._strengths, settings, special=False)
        self._shown = ""

    def result(self, answer: Answer) -> ChatResult:
        """The complete answer as LangChain's result."""
        parsed = self._parsed(answer)
        message = AIMessage(
            content=parsed.content,
            tool_calls=parsed.tool_calls,
            invalid_tool_calls=parsed.invalid_tool_calls,
            usage_metadata=_usage(answer),
            response_metadata=self._metadata(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=self._metadata(answer))])

    def visible(self, pieces: Iterable[str]) -> Iterator[str]:
        """The text that can be shown while it is generated. Text that may be a tool call is held back until the end."""
        if not self._names:
            yield from pieces
            return
        written = ""
        for piece in before_stop(pieces, [CALL_START]):
            written += piece
            if self._prefix is None and not may_be_json_call(written):
                yield written[len(self._shown) :]
                self._shown = written

    def last_chunk(self, answer: Answer) -> ChatGenerationChunk:
        """The text that was held back, the tool calls, and the metadata of the answer."""
        parsed = self._parsed(answer)
        chunks = [
            tool_call_chunk(name=call["name"], args=json.dumps(call["args"]), id=call["id"], index=index)
            for index, call in enumerate(parsed.tool_calls)
        ]
        # LangChain completes unfinished JSON in chunks. The tag prevents that, so that the call stays an invalid one.
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
        return ChatGenerationChunk(message=message, generation_info=self._metadata(answer))

    def _parsed(self, answer: Answer) -> ParsedAnswer:
        if not self._names:
            return ParsedAnswer(answer.text, [], [])
        return parse_answer((self._prefix or "") + answer.text, self._names)

    def _metadata(self, answer: Answer) -> dict[str, Any]:
        strengths = dict(self._strengths)
        return {"model_name": self._model_name, "finish_reason": answer.finish_reason, "strengths": strengths}


def _usage(answer: Answer) -> UsageMetadata:
    return UsageMetadata(
        input_tokens=answer.prompt_tokens,
        output_tokens=answer.new_tokens,
        total_tokens=answer.prompt_tokens + answer.new_tokens,
    )
