"""A conversation as its chat template renders it, with a check that no message is lost on the way.

A template is a program of its author's, and many do not say what they cannot render: they drop a system message, or
render a text where they expect a list of parts as nothing. So the conversation is rendered a second time with a mark
behind each message's text, which shows what became of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.datasets.conversations import content_text
from rotalabs_steer.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from rotalabs_steer.datasets.conversations import Message

    Template = Callable[[Sequence[Message], bool], str]
    """Renders messages; the flag is `add_generation_prompt`."""

_THOUGHT_TAG = re.compile(
    r"[<\[◁][^<>\[\]◁▷\s]*(?:think|thought|reasoning)[^<>\[\]◁▷\s]*[>\]▷]|<\|channel\|?>\s*\w*|<channel\|>",
    re.IGNORECASE,
)
"""A tag that opens or closes a block of thoughts, in the spellings of Qwen, DeepSeek, Mistral, Cohere, Seed, Kimi,
gpt-oss and Gemma."""
_CLOSING = re.compile(
    r"/|(?<![a-z])end(?![a-z])|no_?think|<channel\||<\|channel\|?>\s*(?!analysis|thought)\w*$", re.IGNORECASE
)
_THINK_SWITCH = re.compile(r"/(?:no_?)?think\b")  # templates take these words out of a message as a switch
_THINK_NAME = re.compile("think|thought|reasoning|analysis", re.IGNORECASE)
_IN_FULL = ("user", "system", "developer")


@dataclass(frozen=True)
class CheckedChat:
    """A rendered conversation.

    Attributes:
        thought: the tag of a block of thoughts that is open at the end; "" where none is.
        missing_header: what the template writes before an answer, but not at the end of a prompt; "" where that is the
            same.
    """

    text: str
    thought: str
    missing_header: str


def render_checked(template: Template, messages: Sequence[Mapping[str, Any]]) -> CheckedChat:
    """Renders a conversation with the contents as texts, or as lists of parts where the template wants these.

    Raises:
        ChatTemplateError: the template refuses the messages or loses one.
    """
    texts = [
        dict(message) | ({"content": content_text(message)} if "content" in message else {}) for message in messages
    ]
    marked, refusal = "", None
    try:
        marked = template(_marked(texts), True)
    except ChatTemplateError as error:
        refusal = error
    lost = None if refusal else _first_lost(marked, texts)
    form: Callable[[Sequence[Message]], list[Message]] = list
    if refusal or lost:
        form = _in_parts
        marked = _rendered_parts(template, texts)
        if not marked or _first_lost(marked, texts):
            raise refusal or _losing(lost or texts[-1])
    thought = open_thought(marked.rpartition(_mark(len(texts) - 1))[2])
    header = _missing_header(template, form(_marked(texts)), marked)
    return CheckedChat(template(form(texts), True), thought, header)


def open_thought(text: str) -> str:
    """The tag of the block of thoughts in which a text ends, or "" where it does not end in one."""
    tags = _THOUGHT_TAG.findall(text)
    return tags[-1] if tags and not _CLOSING.search(tags[-1]) else ""


def closes_thought(text: str) -> bool:
    """Whether a text that begins inside a block of thoughts comes to an end of it."""
    tags = _THOUGHT_TAG.findall(text)
    return bool(tags) and _CLOSING.search(tags[0]) is not None


def without_thoughts(text: str) -> str | None:
    """What an answer says after the thoughts that it begins with; None where these do not come to an end."""
    begin = _THOUGHT_TAG.match(text.lstrip())
    if begin is None or _CLOSING.search(begin[0]):
        return text
    end = next((tag for tag in _THOUGHT_TAG.finditer(text, begin.end()) if _CLOSING.search(tag[0])), None)
    return None if end is None else text[end.end() :]


def _mark(number: int) -> str:
    return f"zqx{number}xqz"


def _marked(messages: Sequence[Message]) -> list[Message]:
    """The messages with a mark behind each text. A message that calls tools may lose its text, so it has none."""
    return [
        message if "content" not in message or message.get("tool_calls") else
        message | {"content": message["content"] + _mark(number)}
        for number, message in enumerate(messages)
    ]  # fmt: skip


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [
        message | {"content": [{"type": "text", "text": message["content"]}]} if "content" in message else message
        for message in messages
    ]


def _rendered_parts(template: Template, texts: Sequence[Message]) -> str:
    """What the template makes of the marked messages as parts; nothing where it refuses them or writes out the list."""
    try:
        rendered = template(_in_parts(_marked(texts)), True)
    except ChatTemplateError:
        return ""
    return "" if re.search(r"""['"]type['"]:\s*['"]text['"]""", rendered) else rendered


def _first_lost(marked: str, messages: Sequence[Message]) -> Message | None:
    """The first message of which something is missing in the rendering.

    Templates strip blanks and may escape texts as JSON does. Of answers they leave out the thoughts, so there the mark
    is enough.
    """
    squeezed = _squeeze(marked)
    for number, message in enumerate(_marked(messages)):
        content = message.get("content")
        if content is None or message.get("tool_calls"):
            continue
        wanted = content if message["role"] in _IN_FULL else _mark(number)
        if _squeeze(wanted) not in squeezed and _squeeze(json.dumps(wanted, ensure_ascii=False)[1:-1]) not in squeezed:
            return messages[number]
    return None


def _squeeze(text: str) -> str:
    return "".join(_THINK_SWITCH.sub("", text.replace("zqx", " zqx")).split()).casefold()


def _losing(message: Message) -> ChatTemplateError:
    return ChatTemplateError(
        f"The tokenizer's chat template loses the {message['role']} message {message['content']!r:.60}: it is not in "
        "what the template makes of the conversation, neither as a text nor as a list of parts. If the template has no "
        f"{message['role']} role, put the message into the prompt; otherwise set another tokenizer.chat_template."
    )


def _missing_header(template: Template, asked: list[Message], rendered: str) -> str:
    """Compares with an answered conversation. Thoughts are not a header: a model may write them or not."""
    content = _mark(len(asked))
    answer = content if isinstance(asked[-1].get("content"), str) else [{"type": "text", "text": content}]
    try:
        answered = template([*asked, {"role": "assistant", "content": answer}], False)
    except ChatTemplateError:  # such conversations are not what is asked for
        return ""
    end = rendered.rpartition(_mark(len(asked) - 1))[2].strip()
    between = answered.rpartition(_mark(len(asked) - 1))[2].partition(content)[0].strip()
    header = between.removeprefix(end).strip()
    is_missing = between.startswith(end) and header not in rendered and not _THINK_NAME.search(header)
    return header if is_missing else ""
