"""Tool calls: the prefix that makes a model call a tool, and the calls in the text of an answer."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages.tool import invalid_tool_call, tool_call

from rotalabs_steer.errors import OptionError
from rotalabs_steer.integrations.langchain.messages import CALL_END, CALL_START, RESULT_START

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from langchain_core.messages import InvalidToolCall, ToolCall

_BLOCK = re.compile(rf"{re.escape(CALL_START)}(.*?)(?:{re.escape(CALL_END)}|\Z)", re.DOTALL)
_DECODER = json.JSONDecoder(strict=False)  # because small models write line breaks inside strings


@dataclass(frozen=True)
class ParsedAnswer:
    """The parts of an answer: its text, its tool calls, and the tool calls that cannot be parsed."""

    content: str
    tool_calls: list[ToolCall]
    invalid_tool_calls: list[InvalidToolCall]


def tool_names(tools: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names in OpenAI-style function declarations."""
    return [tool["function"]["name"] for tool in tools]


def forced_prefix(tool_choice: Any, names: Sequence[str]) -> str | None:
    """The text that an answer must begin with so that it is a tool call, or None if the model may choose.

    Args:
        tool_choice: None, False, "auto" and "none" let the model choose. "any", "required" and True ask for a call of
            any tool. The name of a tool, alone or in OpenAI's dict, asks for a call of that tool.

    Raises:
        OptionError: it does not name one of the bound tools.
    """
    if tool_choice in (None, False, "auto", "none"):
        return None
    if tool_choice in (True, "any", "required"):
        name = names[0] if len(names) == 1 else None
    else:
        name = tool_choice.get("function", {}).get("name") if isinstance(tool_choice, dict) else tool_choice
        if name not in names:
            raise OptionError(
                f"tool_choice is {tool_choice!r}, which does not name a bound tool. Use one of {list(names)}, 'auto', "
                "'any' or 'none'."
            )
    opened = f'{CALL_START}\n{{"name": "'
    return opened if name is None else f'{opened}{name}", "arguments": '


def parse_answer(text: str, names: Collection[str]) -> ParsedAnswer:
    """Finds the tool calls of an answer, either between `<tool_call>` tags or in an answer that is only JSON.

    Text after a `<tool_response>` tag is a tool result that the model invented. It is removed.

    Args:
        names: the bound tools. JSON without tags is a call only if it names one of them.
    """
    text = text.partition(RESULT_START)[0]
    blocks = _BLOCK.findall(text)
    if not blocks:
        calls = _bare_calls(text, names)
        return ParsedAnswer("" if calls else text, calls, [])
    calls, invalid = [], []
    for block in blocks:
        try:
            calls.extend(_calls_in(block))
        except ValueError as error:
            invalid.append(invalid_tool_call(name=None, args=block.strip(), id=_new_id(), error=str(error)))
    outside = _BLOCK.split(text)[::2]
    return ParsedAnswer("".join([outside[0], *filter(str.strip, outside[1:])]), calls, invalid)


def may_be_json_call(text: str) -> bool:
    """Whether an answer that begins with this text may consist of a JSON call only."""
    return not text.strip() or text.lstrip().startswith(("{", "[", "```"))


def _bare_calls(text: str, names: Collection[str]) -> list[ToolCall]:
    stripped = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not stripped.startswith(("{", "[")):
        return []
    try:
        calls = _calls_in(stripped)
    except ValueError:
        return []
    return calls if all(call["name"] in names for call in calls) else []


def _calls_in(text: str) -> list[ToolCall]:
    """The calls in a JSON object or a list of objects. Only closing brackets may follow the JSON."""
    stripped = text.strip()
    value, end = _DECODER.raw_decode(stripped)
    rest = stripped[end:].strip(" \n}]")
    if rest:
        raise ValueError(f"There is more text after the JSON: {rest[:80]!r}.")
    return [_call(one) for one in (value if isinstance(value, list) else [value])]


def _call(value: Any) -> ToolCall:
    name = value.get("name") if isinstance(value, dict) else None
    args = value.get("arguments", value.get("parameters", {})) if isinstance(value, dict) else None
    if isinstance(args, str):  # some models write the arguments as a string of JSON
        args = _DECODER.decode(args)
    if not isinstance(name, str) or not isinstance(args, dict):
        raise ValueError('A call must be an object with a "name" and an object of "arguments".')
    return tool_call(name=name, args=args, id=_new_id())


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"
