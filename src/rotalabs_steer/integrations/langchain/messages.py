"""Renders LangChain's messages and tools as a prompt with the tokenizer's chat template.

A template that supports tools declares them and writes calls and results in the model's own format. Any other template
would drop them silently. For such a template, tools, calls and results become plain text in the format of Hermes and
Qwen, which many models and the built-in `tool_restraint` pairs use: the signatures are in the system message, a call is
JSON between `<tool_call>` tags, and a result is between `<tool_response>` tags.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, ChatMessage, HumanMessage, SystemMessage, ToolMessage

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import ChatTemplateError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langchain_core.messages import BaseMessage

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
RESULT_START, RESULT_END = "<tool_response>", "</tool_response>"

_SYSTEM = "You are a helpful assistant."
_DECLARATION = f"""

# Tools

You may call one or more of these functions. Their signatures are given within <tools></tools> tags:
<tools>
{{signatures}}
</tools>

For each call, write a JSON object with the function's name and its arguments within {CALL_START}{CALL_END} tags:
{CALL_START}
{{{{"name": <function-name>, "arguments": <args-json-object>}}}}
{CALL_END}"""
_PROBE_TEXT = "rotalabs_steer_probe"


def render_chat(tokenizer: Any, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]] = ()) -> str:
    """The prompt for a conversation, including the header of the model's answer.

    Args:
        tools: OpenAI-style function declarations.

    Raises:
        ChatTemplateError: there is no chat template, or it rejects the messages.
        OptionError: the conversation is empty, or a message contains something other than text.
    """
    renderer = ChatTokenizer.of(tokenizer)
    chat = [_as_dict(message) for message in messages]
    if not chat:
        raise OptionError("The conversation is empty: there is nothing to answer.")
    if not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in chat):
        return renderer.render(chat)
    if _supports_tools(renderer):
        return renderer.render(chat, tools=list(tools) or None)
    return renderer.render(_with_tools_as_text(renderer, chat, tools))


def text_of(message: BaseMessage) -> str:
    """The text of a message, whose content may be a list of blocks.

    Raises:
        OptionError: a block is an image, a file or something else that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(block["text"])
        elif block.get("type") not in {"tool_use", "tool_call", "reasoning"}:  # calls are also in tool_calls
            raise OptionError(f"A message holds a block of type {block.get('type')!r}; this model reads text only.")
    return "".join(texts)


def _as_dict(message: BaseMessage) -> dict[str, Any]:
    content = text_of(message)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": content}
    if isinstance(message, ToolMessage):
        named = {"name": message.name} if message.name else {}
        return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id} | named
    if isinstance(message, ChatMessage):
        return {"role": message.role, "content": content}
    if not isinstance(message, AIMessage):
        raise OptionError(
            f"A message is a {type(message).__name__}, which this model cannot read. Use system, human, AI and tool "
            "messages."
        )
    calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
        for call in message.tool_calls
    ]
    return {"role": "assistant", "content": content} | ({"tool_calls": calls} if calls else {})


def _with_tools_as_text(
    tokenizer: ChatTokenizer, chat: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The conversation for a template that does not support tools."""
    result_role = "tool" if _renders_role(tokenizer, "tool") else "user"
    plain = []
    for message in chat:
        content = message["content"]
        if message["role"] == "tool":
            plain.append({"role": result_role, "content": f"{RESULT_START}\n{content}\n{RESULT_END}"})
            continue
        calls = [
            f"{CALL_START}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CALL_END}"
            for call in message.get("tool_calls", ())
        ]
        plain.append({"role": message["role"], "content": "\n".join([content, *calls] if content else calls or [""])})
    if tools:
        system = plain.pop(0)["content"] if plain[0]["role"] == "system" else _SYSTEM
        signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        plain.insert(0, {"role": "system", "content": system + _DECLARATION.format(signatures=signatures)})
    return plain


def _supports_tools(tokenizer: ChatTokenizer) -> bool:
    """Whether the template writes a tool that it is given into the prompt."""
    parameters = {"type": "object", "properties": {}}
    probe = {"type": "function", "function": {"name": _PROBE_TEXT, "description": "", "parameters": parameters}}
    return _PROBE_TEXT in tokenizer.render([{"role": "user", "content": "?"}], tools=[probe])


def _renders_role(tokenizer: ChatTokenizer, role: str) -> bool:
    """Whether the template writes the messages of a role into the prompt, rather than drop or reject them."""
    chat = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "?"},
        {"role": role, "content": _PROBE_TEXT},
    ]
    try:
        return _PROBE_TEXT in tokenizer.render(chat)
    except ChatTemplateError:
        return False
