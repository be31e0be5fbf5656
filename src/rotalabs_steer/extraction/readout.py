"""Read-outs: the tokens of a text at which activations are read, as a weight for every token.

Every read-out is a weighted sum over token positions, so one pass over the model serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from rotalabs_steer.datasets.rendering import RenderedText
from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from jaxtyping import Float

READOUTS = ("last", "first", "mean", "response", "last_prompt", "span")

Readout: TypeAlias = str | Callable[[RenderedText], Sequence[int]]
"""A name in `READOUTS`, or a function from a rendered text to the indices of the tokens to average."""


def check_readout(readout: Readout) -> None:
    """Raises an `OptionError` that lists the read-outs, unless this is one."""
    if not callable(readout) and readout not in READOUTS:
        raise OptionError(
            f"Unknown token position {readout!r}. Use one of: {', '.join(READOUTS)}, None for the default, or a "
            "function from a RenderedText to token indices."
        )


def readout_name(readout: Readout) -> str:
    """The name that vectors record as their `token_position`."""
    return readout if isinstance(readout, str) else getattr(readout, "__name__", type(readout).__name__)


def default_readout(text: RenderedText) -> str:
    """ "response" for a text with a prompt and a response, else "last".

    At a matched coherence cost the response mean steers more than the last token on nearly every behaviour measured.
    A mean over a whole text is dominated by its first token, whose norm is a hundred times that of the others.
    """
    return "response" if 0 < text.response_start < len(text.ids) else "last"


def token_weights(text: RenderedText, readout: Readout, place: str = "the text") -> Float[torch.Tensor, " seq"]:
    """Weights over the tokens of a text, adding up to 1. All tokens that are read have the same weight.

    - "last", "first": that token alone.
    - "last_prompt": the last token of the prompt alone, after which the model answers.
    - "mean": every token.
    - "response": every token of the response, or of the whole text where there is no prompt.
    - "span": the tokens of the pair's `positive_span` or `negative_span`.

    Raises:
        DatasetError: the text has no such token; the message names `place`.
    """
    length = len(text.ids)
    if callable(readout):
        chosen = readout(text)
    else:
        chosen = {
            "last": range(length - 1, length),
            "first": range(1),
            "mean": range(length),
            "response": range(text.response_start, length),
            "last_prompt": range(max(text.response_start - 1, 0), text.response_start),
            "span": range(*(text.span or (0, 0))),
        }[readout]
    if len(chosen) == 0 or not all(-length <= index < length for index in chosen):
        raise DatasetError(
            f"{place[:1].upper()}{place[1:]} has no token to read at {readout_name(readout)!r} "
            f"({length} tokens, {length - text.response_start} of them response; indices {list(chosen)[:5]}). "
            "Give the pair a prompt, a response or a span, or choose another token position."
        )
    weights = torch.zeros(length)
    weights[list(chosen)] = 1.0 / len(chosen)
    return weights
