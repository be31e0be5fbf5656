"""A conversation as its chat template renders it, with a check that no message is lost on the way.

A template is a program, and many do not say what they cannot render: they drop a system message, or render nothing for
a string where they expect a list of parts. So the conversation is rendered a second time with a mark after each
message's text, and the marks show which texts are there and where.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, combinations, islice
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.conversations import content_text
from rotalabs_steer.chat.thoughts import after_last_tag, open_thought, without_blocks
from rotalabs_steer.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rotalabs_steer.chat.conversations import Message

    Template = Callable[[Sequence[Message], bool], str]
    """Renders messages; the flag is `add_generation_prompt`."""

_THINK_SWITCH = re.compile(r"/(?:no_?)?think\b")  # templates take these words out of a message as a switch
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MOST_ATTEMPTS = 32


@dataclass(frozen=True)
class CheckedChat:
    """A rendered conversation.

    Attributes:
        thought: the tag of a block of thoughts that is open at the end; "" where none is.
        missing_header: what the template writes before an answer, but not at the end of a prompt; "" where it writes
            the same.
    """

    text: str
    thought: str
    missing_header: str


def render_checked(template: Template, messages: Sequence[Mapping[str, Any]]) -> CheckedChat:
    """Renders a conversation, with contents as strings, or as lists of parts for the roles that need them.

    Raises:
        ChatTemplateError: the template refuses the messages, or loses one or a part of one.
    """
    texts = [
        dict(message) | ({"content": content_text(message)} if "content" in message else {}) for message in messages
    ]
    marked, problems = _marked(texts), []
    for roles in _roles_in_parts(texts):
        asked = _in_parts(marked, roles)
        try:
            shown = template(asked, True)
            _refuse_lost(shown, texts, marked, roles)
            break
        except ChatTemplateError as error:
            problems.append(error)
    else:
        raise problems[0]  # the one about strings, which is what most templates expect
    chat = _in_parts(texts, roles)
    rendered = template(chat, True)
    _refuse_lost_details(template, chat, rendered)
    end = _after_mark(shown, _mark(len(texts) - 1))
    return CheckedChat(rendered, open_thought(end), _missing_header(template, asked, end))


def _mark(number: int | str) -> str:
    return f"zqx{number}xqz"  # letters that no text has in this order, and no template escapes


def _after_mark(rendered: str, mark: str) -> str:
    """What the template writes after a mark, whose case it may have changed."""
    return re.split(mark, rendered, flags=re.IGNORECASE)[-1]


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark after each text and after the name of each function that is called."""
    marked = []
    for number, message in enumerate(messages):
        calls = message.get("tool_calls")
        changed = dict(message)
        if "content" in message and (message["content"].strip() or not calls):
            changed["content"] = message["content"] + _mark(number)
        if calls:
            changed["tool_calls"] = [_renamed(call, _mark(f"{number}c{place}")) for place, call in enumerate(calls)]
        marked.append(changed)
    return marked


def _function(call: Any) -> Any:
    """The mapping that has the name and arguments of a call: the call itself or its `function`."""
    return call["function"] if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping) else call


def _with_function(call: Any, **changed: Any) -> Any:
    function = {**_function(call), **changed}
    return {**call, "function": function} if _function(call) is not call else function


def _function_name(call: Any) -> str:
    function = _function(call)
    name = function.get("name") or function.get("function") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name.strip():
        raise ChatTemplateError(
            f"The tool call {call!r:.80} does not name a function. Give it as "
            '{"type": "function", "function": {"name": "find", "arguments": {"what": "keys"}}}.'
        )
    return name


def _renamed(call: Any, mark: str) -> Any:
    name = _function_name(call)
    return _with_function(call, **{"name" if _function(call).get("name") else "function": name + mark})


def _roles_in_parts(messages: Sequence[Message]) -> Iterator[Sequence[str]]:
    """The roles whose contents are lists of parts, for one attempt after another: no role, all roles, some of them."""
    roles = sorted({str(message.get("role")) for message in messages if "content" in message})
    some = chain.from_iterable(combinations(roles, count) for count in range(1, len(roles)))
    return chain([(), roles], islice(some, _MOST_ATTEMPTS))


def _in_parts(messages: Sequence[Message], roles: Sequence[str]) -> list[Message]:
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]}
        if "content" in message and message.get("role") in roles
        else message
        for message in messages
    ]


def _refuse_lost(shown: str, messages: Sequence[Message], marked: Sequence[Message], roles: Sequence[str]) -> None:
    """Raises where a text or a call is missing in the rendering of the marked messages, or a list is written out."""
    squeezed = _squeeze(shown)
    for number, (message, sent) in enumerate(zip(messages, marked, strict=True)):
        content = sent.get("content", "")
        # Templates may leave the thoughts out of an earlier answer.
        wanted = after_last_tag(content) if message["role"] == "assistant" else content
        # A template that expects strings writes a list of parts as Python shows it.
        is_list = message["role"] in roles and re.search(rf"""{_mark(number)}['"](?:\}}|,\s*['"]type)""", shown)
        if is_list or not _shows(squeezed, wanted):
            raise _losing(message)
        for call, marked_call in zip(message.get("tool_calls") or (), sent.get("tool_calls") or (), strict=True):
            if not _shows(squeezed, _function_name(marked_call)):
                raise ChatTemplateError(
                    f"The tokenizer's chat template loses the call of {_function_name(call)!r}, message {number + 1}: "
                    "the rendered conversation lacks it. Write the call into the content of the message as the model "
                    "writes it, or set another tokenizer.chat_template."
                )


def _shows(squeezed: str, wanted: str) -> bool:
    """Whether a rendering has a text, as it is or escaped as JSON does."""
    return _squeeze(wanted) in squeezed or any(
        _squeeze(json.dumps(wanted, ensure_ascii=ascii_only)[1:-1]) in squeezed for ascii_only in (False, True)
    )


def _squeeze(text: str) -> str:
    """A text without what templates change: blanks, the case of letters, and the words that switch thinking."""
    return "".join(_THINK_SWITCH.sub("", text.replace("zqx", " zqx")).split()).casefold()


def _losing(message: Message) -> ChatTemplateError:
    advice = (
        "Many templates leave out a text beside tool calls: remove it from the message"
        if message.get("tool_calls")
        else f"If the template has no {message['role']} role, put the message into the prompt"
    )
    return ChatTemplateError(
        f"The tokenizer's chat template loses the {message['role']} message {message['content']!r:.60}: the rendered "
        f"conversation lacks it, as a string and as a list of parts. {advice}; otherwise set another "
        "tokenizer.chat_template."
    )


def _refuse_lost_details(template: Template, chat: list[Message], rendered: str) -> None:
    """Raises where the rendering is the same without a name, thoughts or the arguments of a tool call."""
    for number, message in enumerate(chat):
        earlier, later = chat[:number], chat[number + 1 :]
        for field in ("name", *_THOUGHTS):
            # The name of a tool is that of its call, which has been looked for.
            if not message.get(field) or (field == "name" and message["role"] == "tool"):
                continue
            without = {key: value for key, value in message.items() if key != field}
            if _or_nothing(template, [*earlier, without, *later], True) != rendered:
                continue
            # Templates may leave out old thoughts, if they render those of a last message.
            as_last = [_or_nothing(template, [*earlier, last], False) for last in (message, without)]
            if field in _THOUGHTS and as_last[0] != as_last[1]:
                continue
            raise ChatTemplateError(
                f"The tokenizer's chat template loses {field!r} of message {number + 1} ({message['role']}), which is "
                f"{message[field]!r:.60}: the rendered conversation is the same without it. Write it into the content, "
                "or leave it out."
            )
        calls = message.get("tool_calls") or ()
        for place, call in enumerate(calls):
            arguments = _function(call).get("arguments")
            if not arguments or arguments == "{}":
                continue
            emptied = _with_function(call, arguments="{}" if isinstance(arguments, str) else {})
            without = message | {"tool_calls": [*calls[:place], emptied, *calls[place + 1 :]]}
            if _or_nothing(template, [*earlier, without, *later], True) == rendered:
                raise ChatTemplateError(
                    f"The tokenizer's chat template loses the arguments {arguments!r:.60} of the call of "
                    f"{_function_name(call)!r} in message {number + 1}. Write the call into the content of the message "
                    "as the model writes it, or set another tokenizer.chat_template."
                )


def _or_nothing(template: Template, chat: Sequence[Message], is_asked: bool) -> str:
    """What a template renders; "" where it refuses the messages."""
    try:
        return template(chat, is_asked)
    except ChatTemplateError:
        return ""


def _missing_header(template: Template, asked: list[Message], end: str) -> str:
    """What the template writes between the last message and an answer, but not at the end of a prompt.

    Thoughts are not part of such a header, because a model may write them or not. Neither is what the template writes
    before messages of the user as well, because it does not say who speaks.
    """
    content = _mark(len(asked))
    user_turn = re.split(content, _or_nothing(template, [{"role": "user", "content": content}], False))[0]
    for form in (content, [{"type": "text", "text": content}]):
        answered = _or_nothing(template, [*asked, {"role": "assistant", "content": form}], False)
        before = re.split(content, answered, flags=re.IGNORECASE)[0]
        if before != answered:
            header = without_blocks(_after_mark(before, _mark(len(asked) - 1)))
            rest = without_blocks(end)
            missing = "" if header in rest else header.removeprefix(rest).strip()
            return "" if user_turn.strip().endswith(missing) else missing
    return ""  # a template that does not render answers after these messages has no header to miss
