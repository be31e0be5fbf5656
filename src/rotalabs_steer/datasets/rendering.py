"""Pairs and prompts as the token ids that the model sees.

A prompt is rendered with the tokenizer's chat template, up to and with the header of the assistant's turn, exactly as
for generation; the response's tokens follow. So a response stands where the model's own words would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import ChatTemplateError, DatasetError

if TYPE_CHECKING:
    from rotalabs_steer.datasets.pairs import ContrastPair


@dataclass(frozen=True)
class RenderedText:
    """Token ids, and where the response begins (0 where there is no prompt)."""

    ids: tuple[int, ...]
    response_start: int


@dataclass(frozen=True)
class RenderedPair:
    """Both sides of a pair."""

    positive: RenderedText
    negative: RenderedText


def render_pair(
    tokenizer: Any, pair: ContrastPair, *, place: str = "the pair", max_length: int | None = None
) -> RenderedPair:
    """Both sides of a pair as token ids.

    Args:
        place: what to call the pair in an error.
        max_length: the model's context window in tokens.

    Raises:
        ChatTemplateError: the pair has a prompt and the tokenizer no usable chat template.
        DatasetError: the sides have the same tokens, one has none, or one is longer than `max_length`.
    """
    if pair.prompt is None:
        sides = [RenderedText(_plain_ids(tokenizer, text), 0) for text in (pair.positive, pair.negative)]
    else:
        prompt = render_prompt(tokenizer, pair.prompt, pair.system)
        responses = (_response_ids(tokenizer, text) for text in (pair.positive, pair.negative))
        sides = [RenderedText((*prompt, *response), len(prompt)) for response in responses]
    for name, side in zip(("positive", "negative"), sides, strict=True):
        if len(side.ids) <= side.response_start:
            raise DatasetError(f"The {name} text of {place} has no tokens.")
        if max_length is not None and len(side.ids) > max_length:
            raise DatasetError(
                f"The {name} text of {place} has {len(side.ids)} tokens; the model's context holds {max_length}. "
                "Shorten it: cutting it silently would change what the pair contrasts."
            )
    positive, negative = sides
    if positive.ids == negative.ids:
        raise DatasetError(f"Both sides of {place} have the same tokens, so their difference is zero.")
    return RenderedPair(positive, negative)


def render_prompt(tokenizer: Any, prompt: str, system: str | None = None) -> tuple[int, ...]:
    """A user's turn, ready for the model to answer.

    Raises:
        ChatTemplateError: the tokenizer has no chat template, or its template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ChatTemplateError(
            "The tokenizer has no chat template, so a prompt cannot be rendered as the model expects it. Set "
            "tokenizer.chat_template (for a base model, for example \"{% for m in messages %}{{ m['content'] }}\\n"
            '{% endfor %}"), or give pairs without prompts: two plain texts.'
        )
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise whatever their author chose
        raise ChatTemplateError(
            f"The tokenizer's chat template refused the messages (roles {[m['role'] for m in messages]}): {error}. "
            "If it has no system role, put the system message into the prompt."
        ) from error
    return _response_ids(tokenizer, text)


def _plain_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def _response_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
