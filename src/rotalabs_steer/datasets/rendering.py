"""Pairs and prompts as the token ids that the model sees.

A prompt is rendered with the tokenizer's chat template, up to and with the header of the assistant's turn, exactly as
for generation; the response's tokens follow. So a response stands where the model's own words would.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.datasets.pairs import ContrastPair


@dataclass(frozen=True)
class RenderedText:
    """Token ids, where the response begins (0 where there is no prompt), and the tokens of the pair's span.

    Rendering packs the ids into arrays, a tenth of the size of a tuple of numbers.
    """

    ids: Sequence[int]
    response_start: int
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class RenderedPair:
    """Both sides of a pair."""

    positive: RenderedText
    negative: RenderedText


def render_pair(
    tokenizer: Any,
    pair: ContrastPair,
    *,
    place: str = "the pair",
    max_length: int | None = None,
    truncate: bool = False,
) -> RenderedPair:
    """Both sides of a pair as token ids.

    Args:
        place: what to call the pair in an error.
        max_length: the model's context window in tokens.
        truncate: cut a longer text at its beginning, so that the end of the response stays, instead of refusing it.

    Raises:
        ChatTemplateError: the pair has a prompt and the tokenizer no chat template that renders it, or the response
            would stand inside a block of thoughts.
        DatasetError: the sides have the same tokens, one has none, or one is longer than `max_length`.
    """
    chat = ChatTokenizer.of(tokenizer)
    sides = [
        _render_side(chat, *pair.positive_side, pair.positive, pair.positive_span),
        _render_side(chat, *pair.negative_side, pair.negative, pair.negative_span),
    ]
    for number, name in enumerate(("positive", "negative")):
        side = sides[number]
        if not side.ids or (len(side.ids) <= side.response_start and not pair.asks_differently):
            raise DatasetError(f"The {name} text of {place} has no tokens.")
        if max_length is not None and len(side.ids) > max_length:
            if not truncate:
                raise DatasetError(
                    f"The {name} text of {place} has {len(side.ids)} tokens; the model's context holds {max_length}. "
                    "Shorten it, or pass truncate=True to cut its beginning: cutting changes what the pair contrasts."
                )
            sides[number] = _without_beginning(side, len(side.ids) - max_length, f"the {name} text of {place}")
    positive, negative = sides
    if positive.ids == negative.ids:
        raise DatasetError(f"Both sides of {place} have the same tokens, so their difference is zero.")
    return RenderedPair(positive, negative)


def render_prompt(tokenizer: Any, prompt: Prompt, system: str | None = None) -> tuple[int, ...]:
    """A user's turn or a conversation, ready for the model to answer; see `ChatTokenizer.prompt`."""
    return ChatTokenizer.of(tokenizer).prompt(prompt, system)


def _render_side(
    chat: ChatTokenizer, prompt: Prompt | None, system: str | None, text: str, span: str | None
) -> RenderedText:
    start = () if prompt is None else chat.prompt(prompt, system, text)
    plain = prompt is None
    if span is None:
        return RenderedText(array("i", (*start, *chat.ids(text, special=plain))), len(start))
    if not getattr(chat.tokenizer, "is_fast", False):
        raise DatasetError("Reading a span needs to know which tokens it has: load the tokenizer with use_fast=True.")
    ids, offsets = chat.with_offsets(text, special=plain)
    tokens = _tokens_of(offsets, text.index(span), len(span), len(start))
    return RenderedText(array("i", (*start, *ids)), len(start), tokens)


def _tokens_of(offsets: list[tuple[int, int]], begin: int, length: int, shift: int) -> tuple[int, int]:
    """First and one past the last of the tokens that hold some of the characters."""
    inside = [number for number, (low, high) in enumerate(offsets) if low < begin + length and high > begin]
    return shift + inside[0], shift + inside[-1] + 1


def _without_beginning(side: RenderedText, cut: int, name: str) -> RenderedText:
    if side.span is not None and side.span[0] < cut:
        raise DatasetError(f"Cutting {name} to the model's context would cut its span: shorten it by hand.")
    span = None if side.span is None else (side.span[0] - cut, side.span[1] - cut)
    return RenderedText(side.ids[cut:], max(side.response_start - cut, 0), span)
