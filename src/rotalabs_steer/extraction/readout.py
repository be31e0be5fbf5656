"""Where in a text its activation is read: a weight for every token.

Every read-out is a weighted sum over token positions, so one pass over the model serves them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from jaxtyping import Float

    from rotalabs_steer.datasets.rendering import RenderedText

READOUTS = ("last", "first", "mean", "response")


def check_readout(name: str) -> str:
    """The name itself, or an `OptionError` that lists the ones there are."""
    if name not in READOUTS:
        raise OptionError(
            f"Unknown token position {name!r}. Use one of: {', '.join(READOUTS)}, or None for the default."
        )
    return name


def default_readout(*, has_prompt: bool) -> str:
    """The mean over the response where there is a prompt to respond to, else the last token.

    At a matched coherence cost the response mean steers more than the last token on nearly every behaviour measured;
    a mean over a whole text is dominated by its first token, whose norm is a hundred times that of the others.
    """
    return "response" if has_prompt else "last"


def token_weights(text: RenderedText, readout: str) -> Float[torch.Tensor, " seq"]:
    """Weights over the tokens of a text, adding up to 1.

    - "last", "first": that token alone.
    - "mean": every token alike.
    - "response": every token of the response alike; the whole text where there is no prompt.
    """
    length = len(text.ids)
    weights = torch.zeros(length)
    if readout == "last":
        weights[-1] = 1.0
    elif readout == "first":
        weights[0] = 1.0
    else:
        start = text.response_start if readout == "response" else 0
        weights[start:] = 1.0 / (length - start)
    return weights
