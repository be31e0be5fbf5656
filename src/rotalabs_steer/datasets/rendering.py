"""Pairs as the token ids that the model sees.

A prompt is rendered with the tokenizer's chat template, including the header of the assistant's turn, exactly as for
generation. The response's tokens follow, so a response stands where the model's own words would.
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
    """A text as token ids.

    Attributes:
        ids: rendering packs them into an array, which takes a tenth of the memory of a tuple of numbers.
        response_start: index of the response's first token; 0 if there is no prompt.
        span: index of the first token of the pair's span and one past its last.
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
        truncate: cut a longer text at its beginning, so that the end of the response stays; else it is an error.

    Raises:
        ChatTemplateError: the tokenizer has no chat template that renders the pair's prompt, or the response would
            stand inside a block of thoughts.
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
    """The tokens that contain characters of the span: the first, and one past the last."""
    inside = [number for number, (low, high) in enumerate(offsets) if low < begin + length and high > begin]
    return shift + inside[0], shift + inside[-1] + 1


def _without_beginning(side: RenderedText, cut: int, name: str) -> RenderedText:
    if side.span is not None and side.span[0] < cut:
        raise DatasetError(f"Cutting {name} to the model's context would cut its span: shorten it by hand.")
    span = None if side.span is None else (side.span[0] - cut, side.span[1] - cut)
    return RenderedText(side.ids[cut:], max(side.response_start - cut, 0), span)
