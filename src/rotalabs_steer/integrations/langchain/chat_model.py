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
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict

from rotalabs_steer.integrations.langchain.generation import up_to
from rotalabs_steer.integrations.langchain.language_model import SteeredLanguageModel
from rotalabs_steer.integrations.langchain.messages import CALL_END, CALL_START, RESULT_START, render_chat
from rotalabs_steer.integrations.langchain.tool_calls import (
    ParsedAnswer,
    begins_like_json,
    forced_beginning,
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

    from rotalabs_steer.integrations.langchain.generation import Answer, Request


class SteeredChatModel(SteeredLanguageModel[AIMessage], BaseChatModel):
    """A LangChain chat model whose answers are steered.

    chat = SteeredChatModel(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        steering_configs={"formality": {"vector_path": "vectors/formality", "strength": 1.0}},
    )
    chat.set_strength("formality", 0.5)  # for every later call
    chat.invoke("Hello!", config={"configurable": {"strengths": {"formality": -1.0}}})  # for this call

    A call is steered in its own thread or task, so calls at different strengths may run at the same time. `batch` and
    `abatch` answer up to `max_batch_size` inputs in one run of the model, each at its own strengths. See
    `SteeredLanguageModel` for the settings.
    """

    model_config = ConfigDict(extra="forbid")

    streaming: bool = False
    """Whether `invoke` streams inside, for callbacks that want each piece."""

    @classmethod
    def sharing(cls, other: SteeredLanguageModel[Any]) -> SteeredChatModel:
        """A chat model on the model, vectors and strengths of another: what changes in one changes in both."""
        fields = {name: getattr(other, name) for name in SteeredLanguageModel.model_fields}
        chat = cls(**fields | {"steering_configs": {}})
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

    def _request(self, given: LanguageModelInput, stop: Sequence[str] | None, options: Mapping[str, Any]) -> Request:
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
        options: Mapping[str, Any],
    ) -> None:
        options = dict(options)
        self._strengths = chat._behaviors.merged(options.pop("strengths", None))
        choice = options.pop("tool_choice", None)
        tools = [] if choice == "none" else [convert_to_openai_tool(tool) for tool in options.pop("tools", None) or ()]
        options.pop("tools", None)
        self._model_name = chat.model_name
        self._names = tool_names(tools)
        self._forced = forced_beginning(choice, self._names)
        ends = () if not tools else (RESULT_START,) if self._forced is None else (RESULT_START, CALL_END)
        settings = chat._settings(stop, options, *ends)
        prompt = render_chat(chat._generator.chat, messages, tools) + (self._forced or "")
        self.request: Request = chat._generator.request(prompt, self._strengths, settings, special=False)
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
