"""What decoder layers return: the hidden state among other things, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.decoder import hidden_size, text_config, transformers_model
from rotalabs_steer.errors import ArchitectureError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import nn

# Model types that lay the residual stream out in a way of their own; see `ResidualLayout`.
_SEQUENCE_FIRST = frozenset({"xlnet", "fsmt"})
_STREAMS_FIRST = frozenset({"gemma3n_text"})
_STREAMS_BEHIND_EACH_OTHER = frozenset({"prophetnet"})
_VIRTUAL_TOKENS_FIRST = frozenset({"cpmant"})


@dataclass(frozen=True)
class ResidualLayout:
    """Where batch, tokens and streams are in what a model's layers return: almost always `[batch, seq, hidden]`.

    XLNet and FSMT put the sequence first. Some models keep several residual streams, which one vector steers all and
    whose mean is what is captured: along a dimension of their own (Gemma-3n, hyper-connections), side by side in a
    wide hidden (Qwen4-Exp) or behind each other in the sequence (ProphetNet). And some layers see more columns than
    the call has tokens: virtual prompt tokens before them (CPM-Ant) or padding after them (Reformer, BigBird).
    """

    model_type: str
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> ResidualLayout:
        """The layout of this model's layers."""
        return cls(str(getattr(text_config(transformers_model(model)), "model_type", "")), hidden_size(model))

    @property
    def plain_width(self) -> int | None:
        """The width of `[batch, seq, hidden]`; None where the sequence comes first, so that no shape is plain."""
        return None if self.model_type in _SEQUENCE_FIRST else self.width

    def is_plain(self, hidden: torch.Tensor, columns: int) -> bool:
        """Whether a layer's output is `[batch, seq, hidden]` for the tokens of the call and nothing else."""
        return hidden.dim() == 3 and hidden.shape[1:] == (columns, self.plain_width)

    def streams(self, hidden: torch.Tensor, columns: int) -> torch.Tensor:
        """A view of a layer's output as `[streams, batch, seq, hidden]`, seq being the columns of the call.

        seq is less where a layer sees the last columns only, as Gemma-4's layers with shared keys do in `generate`.
        """
        if self.model_type in _SEQUENCE_FIRST:
            hidden = hidden.transpose(0, 1)
        if hidden.dim() == 4:
            streams = hidden if self.model_type in _STREAMS_FIRST else hidden.movedim(2, 0)
        elif self.model_type in _STREAMS_BEHIND_EACH_OTHER:
            streams = torch.unflatten(hidden, 1, (-1, columns)).movedim(1, 0)
        elif hidden.shape[-1] > self.width and hidden.shape[-1] % self.width == 0:
            streams = torch.unflatten(hidden, -1, (-1, self.width)).movedim(-2, 0)
        else:
            streams = hidden.unsqueeze(0)
        columns = min(columns, streams.shape[2])
        start = streams.shape[2] - columns if self.model_type in _VIRTUAL_TOKENS_FIRST else 0
        return streams.narrow(2, start, columns)

    def tokens(self, hidden: torch.Tensor, columns: int) -> Float[torch.Tensor, "batch seq hidden"]:
        """A layer's output as one activation a token: the mean where there are several streams."""
        return hidden if self.is_plain(hidden, columns) else self.streams(hidden, columns).mean(dim=0)

    def replace(self, hidden: torch.Tensor, streams: torch.Tensor) -> torch.Tensor:
        """A layer's output with its streams replaced; the counterpart of `streams`."""
        replaced = hidden.clone()
        self.streams(replaced, streams.shape[2]).copy_(streams)
        return replaced


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden state in what a module returned: the tensor itself, or the first of a tuple or output object."""
    if isinstance(output, torch.Tensor):
        return output
    hidden = getattr(output, "hidden_states", None)
    if isinstance(hidden, torch.Tensor):
        return hidden
    try:
        first = output[0]
    except (TypeError, KeyError, IndexError):
        first = None
    if isinstance(first, torch.Tensor):
        return first
    raise ArchitectureError(f"A layer returned {type(output).__name__}, in which no hidden state was found.")


def with_first_tensor(output: Any, hidden: torch.Tensor) -> Any:
    """`output` with its hidden state replaced; the counterpart of `first_tensor`."""
    if isinstance(output, torch.Tensor):
        return hidden
    fields = getattr(output, "_fields", None)
    if fields is not None:  # a named tuple
        return output._replace(**{"hidden_states" if "hidden_states" in fields else fields[0]: hidden})
    if isinstance(getattr(output, "hidden_states", None), torch.Tensor):
        output.hidden_states = hidden
        return output
    if isinstance(output, (tuple, list)):
        return type(output)((hidden, *output[1:]))
    output[next(iter(output))] = hidden  # a ModelOutput: an ordered mapping
    return output
