"""The tags around a model's thoughts, and the text after them."""

from __future__ import annotations

import re

_TAG = re.compile(
    r"[<\[◁][^<>\[\]◁▷\s]*(?:think|thought|reasoning)[^<>\[\]◁▷\s]*[>\]▷]"
    r"|<\|channel\|?>\s*\w*(?:<\|message\|>)?|<channel\|>",
    re.IGNORECASE,
)
"""A tag that opens or closes a block of thoughts, in the spellings of Qwen, DeepSeek, Mistral, Cohere, Seed, Kimi,
gpt-oss and Gemma."""
_CLOSING = re.compile(
    r"/|(?<![a-z])end(?![a-z])|no_?think|<channel\||<\|channel\|?>\s*(?!analysis|thought)\w*(?:<\|message\|>)?$",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"<\|channel\|?>", re.IGNORECASE)


def open_thought(text: str) -> str:
    """The tag of the block of thoughts that a text ends in, or "" where it does not end in one."""
    tags = _TAG.findall(text)
    return tags[-1] if tags and not _CLOSING.search(tags[-1]) else ""


def closes_thought(text: str) -> bool:
    """Whether a text that begins inside a block of thoughts closes the block."""
    tags = _TAG.findall(text)
    return bool(tags) and _CLOSING.search(tags[0]) is not None


def without_thoughts(text: str) -> str | None:
    """An answer without the thoughts that it begins with; None where these do not end."""
    while (begin := _TAG.match(text.lstrip())) is not None:
        text = text.lstrip()[begin.end() :]
        if not _CLOSING.search(begin[0]):
            end = next((tag for tag in _TAG.finditer(text) if _CLOSING.search(tag[0])), None)
            if end is None:
                return None
            text = text[end.end() :]
    return text


def after_last_tag(text: str) -> str:
    """The part of a text after its last tag, which every chat template keeps of an earlier answer."""
    return _TAG.split(text)[-1]


def without_blocks(text: str) -> str:
    """A text without its closed blocks of thoughts, and without closing tags that have no opening one.

    Tags that name a channel stay, because an answer has one as well.
    """
    kept, position, opened = "", 0, None
    for tag in _TAG.finditer(text):
        if not _CLOSING.search(tag[0]):
            opened = tag.start() if opened is None else opened
            continue
        kept += text[position : tag.start() if opened is None else opened]
        position = tag.start() if _CHANNEL.match(tag[0]) else tag.end()
        opened = None
    return (kept + text[position:]).strip()


def is_tag(token: str) -> bool:
    """Whether a special token is a tag of thoughts, or begins a tag that names a channel."""
    return _TAG.fullmatch(token) is not None
