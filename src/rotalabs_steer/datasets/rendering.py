"""Pairs and prompts as the token ids that the model sees.

A prompt is rendered with the tokenizer's chat template, up to and with the header of the assistant's turn, exactly as
for generation; the response's tokens follow. So a response stands where the model's own words would.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import ChatTemplateError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        ChatTemplateError: the pair has a prompt and the tokenizer no usable chat template.
        DatasetError: the sides have the same tokens, one has none, or one is longer than `max_length`.
    """
    system = pair.system if pair.negative_system is None else pair.negative_system or None
    prompt = pair.prompt if pair.negative_prompt is None else pair.negative_prompt
    sides = [
        _render_side(tokenizer, pair.prompt, pair.system, pair.positive, pair.positive_span),
        _render_side(tokenizer, prompt, system, pair.negative, pair.negative_span),
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


def render_prompt(tokenizer: Any, prompt: str, system: str | None = None) -> tuple[int, ...]:
    """A user's turn, ready for the model to answer.

    Raises:
        ChatTemplateError: the tokenizer has no chat template, or its template refuses the messages.
    """
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = render_messages(tokenizer, messages)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def render_messages(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """A conversation as text, up to and with the header of the assistant's turn.

    Args:
        messages: dicts with `role` and `content`, and what else the template knows.
        options: for the template, such as `tools`.

    Raises:
        ChatTemplateError: the tokenizer has no chat template, or its template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError(
            "The tokenizer has no chat template, so a prompt cannot be rendered as the model expects it. Set "
            "tokenizer.chat_template (for a base model, for example \"{% for m in messages %}{{ m['content'] }}\\n"
            '{% endfor %}"), or give pairs without prompts: two plain texts.'
        )
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # templates raise whatever their author chose
        raise ChatTemplateError(
            f"The tokenizer's chat template refused the messages (roles {[m['role'] for m in messages]}): {error}. "
            "If it has no system role, put the system message into the prompt."
        ) from error
    return str(text)


def _render_side(tokenizer: Any, prompt: str | None, system: str | None, text: str, span: str | None) -> RenderedText:
    start = () if prompt is None else render_prompt(tokenizer, prompt, system)
    special = {} if prompt is None else {"add_special_tokens": False}
    if span is None:
        return RenderedText(array("i", (*start, *tokenizer(text, **special)["input_ids"])), len(start))
    if not getattr(tokenizer, "is_fast", False):
        raise DatasetError("Reading a span needs to know which tokens it has: load the tokenizer with use_fast=True.")
    encoded = tokenizer(text, return_offsets_mapping=True, **special)
    tokens = _tokens_of(encoded["offset_mapping"], text.index(span), len(span), len(start))
    return RenderedText(array("i", (*start, *encoded["input_ids"])), len(start), tokens)


def _tokens_of(offsets: list[tuple[int, int]], begin: int, length: int, shift: int) -> tuple[int, int]:
    """First and one past the last of the tokens that hold some of the characters."""
    inside = [number for number, (low, high) in enumerate(offsets) if low < begin + length and high > begin]
    return shift + inside[0], shift + inside[-1] + 1


def _without_beginning(side: RenderedText, cut: int, name: str) -> RenderedText:
    if side.span is not None and side.span[0] < cut:
        raise DatasetError(f"Cutting {name} to the model's context would cut its span: shorten it by hand.")
    span = None if side.span is None else (side.span[0] - cut, side.span[1] - cut)
    return RenderedText(side.ids[cut:], max(side.response_start - cut, 0), span)
