"""Prompts that are conversations: lists of messages, as chat templates take them."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from rotalabs_steer.errors import DatasetError

Message = dict[str, Any]
Prompt = str | list[Message]
"""The input to a model: a user's text, or a conversation whose last message the model answers."""

_ANSWERED_ROLES = ("user", "tool")
_WRITTEN_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")  # finds truncated lists, too
_CONVERSATION_KEYS = ("messages", "conversation", "conversations")
_NAMED_KEY = re.compile(r"""['"](?:role|from|type)['"]\s*:""")
_MESSAGE_KEYS = ({"role", "content"}, {"role", "tool_calls"}, {"from", "value"}, {"type", "text"})
_SYSTEM_ROLES = ("system", "developer")


def check_prompt(prompt: Any, system: Any = None, name: str = "prompt") -> Prompt:
    """The prompt. A conversation becomes a new list of new dicts, without fields that are None.

    Args:
        system: the system message that precedes it.
        name: the name of the prompt in errors.

    Raises:
        DatasetError: the prompt is empty, a message is malformed, the last message is not one that a model answers, or
            there are two system messages.
    """
    if system is not None and not isinstance(system, str):
        raise DatasetError(f"The system message of a {name} is of type {type(system).__name__}; it must be a string.")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DatasetError(f"The {name} of a pair is empty; leave it out (None) or give some text.")
        if _is_written_conversation(prompt):
            raise DatasetError(
                f"The {name} {prompt!r:.60} is a conversation written as a string, as in tables and CSV files. Give "
                "the list of messages itself, each with 'role' and 'content'; JSON Lines files can hold it."
            )
        return prompt
    if not isinstance(prompt, Iterable) or isinstance(prompt, Mapping | bytes):
        raise DatasetError(
            f"The {name} is of type {type(prompt).__name__}; give a string or a list of messages, as in "
            '[{"role": "user", "content": "Hello!"}].'
        )
    messages = [_check_message(message, f"message {number} of the {name}") for number, message in enumerate(prompt, 1)]
    if not messages:
        raise DatasetError(f"The {name} is an empty list; leave it out (None) or give messages.")
    if messages[-1]["role"] not in _ANSWERED_ROLES:
        raise DatasetError(
            f"The last message of the {name} has the role {messages[-1]['role']!r}, but the model answers a message "
            "with the role 'user' or 'tool'. Give the answers as the positive and the negative text."
        )
    if system is not None and any(message["role"] in _SYSTEM_ROLES for message in messages):
        raise DatasetError(
            f"The {name} begins with a system message of its own, and system={system!r:.40} is given, too. Give one."
        )
    return messages


def as_messages(prompt: Prompt, system: str | None = None) -> list[Message]:
    """The conversation to give to a chat template.

    Raises:
        DatasetError: see `check_prompt`.
    """
    checked = check_prompt(prompt, system)
    asked = [{"role": "user", "content": checked}] if isinstance(checked, str) else checked
    return asked if system is None else [{"role": "system", "content": system}, *asked]


def prompt_text(prompt: Prompt | None) -> str:
    """A prompt for people to read: a string as it is, a conversation with a line for each message."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    return "\n".join(f"{message['role']}: {content_text(message)}" for message in prompt)


def prompt_key(prompt: Prompt | None) -> str | None:
    """A hashable value that is the same for equal prompts and differs between a string and a conversation."""
    return prompt if prompt is None or isinstance(prompt, str) else json.dumps([prompt], sort_keys=True)


def content_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content may be a list of parts.

    Raises:
        DatasetError: a part is something other than text.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part["text"] for part in _check_parts(content, f"the {message.get('role')} message"))


def _is_written_conversation(text: str) -> bool:
    """Whether a string is a message, a list of messages or parts, or a dict with such a list, in JSON or Python."""
    if _WRITTEN_MESSAGES.match(text):
        return True
    value = None
    if text.strip()[:1] in ("[", "{") and _NAMED_KEY.search(text):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                value = read(text.strip())
                break
    if isinstance(value, dict):
        value = next((value[key] for key in _CONVERSATION_KEYS if key in value), [value])
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and any(keys <= item.keys() for keys in _MESSAGE_KEYS) for item in value)
    )


def _check_message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise DatasetError(
            f"{name.capitalize()} is of type {type(message).__name__}; it must be a mapping with 'role' and 'content'."
        )
    # Tables of Hugging Face datasets give every row the columns of all rows, and None where a row has no value.
    known = {str(key): value for key, value in message.items() if value is not None}
    role, content = known.get("role"), known.get("content")
    if not isinstance(role, str) or not role.strip():
        raise DatasetError(f"{name.capitalize()} has the role {role!r}; it must be a string such as 'user'.")
    if not isinstance(known.get("tool_calls", []), list):
        raise DatasetError(
            f"{name.capitalize()} has tool_calls of type {type(known['tool_calls']).__name__}; give a list."
        )
    if content is None and known.get("tool_calls"):
        return known
    if not isinstance(content, str):
        known["content"] = content = _check_parts(content, name)
    if role in {*_SYSTEM_ROLES, "user"} and not content_text(known).strip():
        raise DatasetError(f"{name.capitalize()} ({role}) is empty; give it some text or leave it out.")
    try:
        json.dumps(known)
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{name.capitalize()} holds a value that JSON cannot represent: {error}.") from error
    return known


def _check_parts(content: Any, name: str) -> list[Any]:
    if not isinstance(content, Iterable) or isinstance(content, Mapping | bytes):
        raise DatasetError(
            f"{name.capitalize()} has a content of type {type(content).__name__}; it must be a string or a list of "
            "parts."
        )
    parts = [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in content
    ]
    for part in parts:
        is_text = isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        if not is_text:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DatasetError(
                f"{name.capitalize()} has a part of type {kind!r}; only text can be read: "
                '{"type": "text", "text": "…"}.'
            )
    return parts
