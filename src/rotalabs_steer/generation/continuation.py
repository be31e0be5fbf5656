"""What a model writes after prompts or rows of token ids, as one batch."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.thoughts import without_thoughts
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.model.decoder import input_device
from rotalabs_steer.model.inference import evaluating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt


def generate_tokens(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 64,
    *,
    system: str | None = None,
    **options: Any,
) -> list[list[int]]:
    """The model's answer to each prompt as token ids, without the end-of-sequence token.

    Args:
        system: a system message before every prompt.
        options: options of `model.generate`; without them, decoding is greedy.
    """
    chat = ChatTokenizer.of(tokenizer)
    rows = [chat.prompt(prompt, system) for prompt in list_of("prompts", prompts)]
    return continue_rows(model, chat, rows, max_new_tokens, **options)


def continue_rows(
    model: nn.Module, tokenizer: Any, rows: Sequence[Sequence[int]], max_new_tokens: int, **options: Any
) -> list[list[int]]:
    """What the model writes after each row of token ids, as `generate_tokens` gives it."""
    tokenizer = ChatTokenizer.of(tokenizer).tokenizer
    length = max(len(row) for row in rows)
    device = input_device(model)
    ends = end_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):  # padding is on the left, because generation continues on the right
        ids[number, length - len(row) :] = torch.tensor(row)
        mask[number, length - len(row) :] = 1
    settings = {"do_sample": False, "pad_token_id": pad} | options
    with evaluating(model):
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, **settings
        )
    stops = ends | {pad}  # rows that end early are filled with pads
    return [list(takewhile(lambda token: token not in stops, row)) for row in output[:, length:].tolist()]


def generate_texts(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Prompt], max_new_tokens: int = 64, **options: Any
) -> list[str]:
    """The model's greedy answer to each prompt."""
    tokens = generate_tokens(model, tokenizer, prompts, max_new_tokens, **options)
    return [ChatTokenizer.of(tokenizer).decode(row).strip() for row in tokens]


def spoken(
    tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str], system: str | None = None
) -> tuple[str, ...]:
    """The part of each answer after the model's thoughts, which is the part that can be judged.

    Raises:
        OptionError: an answer ends before its thoughts do.
    """
    chat = ChatTokenizer.of(tokenizer)
    asked = zip(prompts, answers, strict=True)
    found = [without_thoughts(chat.open_thought(prompt, system) + answer) for prompt, answer in asked]
    said = tuple(text.strip() for text in found if text is not None)
    if len(said) < len(found):
        raise OptionError(
            f"{len(found) - len(said)} of {len(found)} answers end inside the model's thoughts, so there is nothing to "
            "judge. Pass template_options={'enable_thinking': False} (--template enable_thinking=false) if the chat "
            "template has such an option, or raise max_new_tokens."
        )
    return said


def end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """The ids of all tokens that end a text of the model."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
