"""What decoder layers return: the hidden state among other things, and how it is laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.architectures import architecture_table
from rotalabs_steer.model.decoder import decoder_layers, hidden_size, input_device, text_config, transformers_model
from rotalabs_steer.model.inference import INPUT_ERRORS, layer_output

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import nn

PLAIN, SEQUENCE_FIRST, UNKNOWN = "plain", "sequence_first", "unknown"


@dataclass(frozen=True)
class ResidualLayout:
    """Where batch, tokens and streams are in what a model's layers return.

    The layout is known from the model's type, because a shape alone can be ambiguous: with as many rows as columns,
    `[batch, seq, hidden]` and `[seq, batch, hidden]` look alike. The shape of every output is checked against it.

    - "plain": `[batch, seq, hidden]`. Models with several residual streams have them along a dimension of their own
      (hyper-connections) or side by side in a wide hidden (Qwen4-Exp). One vector steers all streams, and their mean is
      captured.
    - "sequence_first": `[seq, batch, hidden]` (XLNet, FSMT, ChatGLM).
    - "streams_first": `[streams, batch, seq, hidden]` (Gemma-3n).
    - "streams_in_sequence": one stream after another along the sequence. The first is the model's hidden state and is
      captured (ProphetNet).
    - "tokens_before": virtual prompt tokens before those of the call (CPM-Ant).
    - "padding_after": columns after those of the call (Reformer, BigBird).
    - "last_columns": some layers see only the last columns of the call (Gemma-4's with shared keys, in `generate`).
    - "patches": columns are patches of bytes, no more than there are bytes (BLT).
    - "unknown": `[batch, seq, hidden]` or `[seq, batch, hidden]`; a call whose shape leaves this open is refused.
    """

    kind: str
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> ResidualLayout:
        """The layout of this model's layers. For code outside transformers, it is measured by running two tokens."""
        model_type = str(getattr(text_config(transformers_model(model)), "model_type", ""))
        layouts = architecture_table().layouts
        if model_type in layouts or _is_of_transformers(decoder_layers(model)[0]):
            return cls(layouts.get(model_type, PLAIN), hidden_size(model))
        return cls(_measured_order(model), hidden_size(model))

    @property
    def plain_width(self) -> int | None:
        """The width of outputs `[batch, seq, hidden]`; None where such a shape may mean something else."""
        return None if self.kind in (SEQUENCE_FIRST, UNKNOWN) else self.width

    def is_plain(self, hidden: torch.Tensor, rows: int, columns: int) -> bool:
        """Whether a layer's output is `[batch, seq, hidden]` for the tokens of the call and nothing else."""
        return hidden.shape == (rows, columns, self.plain_width)

    def streams(self, hidden: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """A view of a layer's output as `[streams, batch, seq, hidden]`, for a call of so many rows and columns.

        Raises:
            ArchitectureError: the output does not have the shape that the layout and the call imply.
        """
        streams, expected = self._as_streams(hidden, columns), columns
        is_square = self.kind == UNKNOWN and rows == columns > 1
        if streams is not None and not is_square:
            if self.kind == "tokens_before":
                streams = streams[:, :, -columns:]
            elif self.kind == "padding_after":
                streams = streams[:, :, :columns]
            elif self.kind in ("last_columns", "patches"):
                expected = min(columns, streams.shape[2])
            if streams.shape[1:] == (rows, expected, self.width):
                return streams
            if self.kind == UNKNOWN and streams.shape[1:] == (columns, rows, self.width):
                return streams.transpose(1, 2)
        raise ArchitectureError(
            f"A layer returned {list(hidden.shape)} for {rows} rows of {columns} tokens and a residual stream of width "
            f"{self.width} ({self.kind} layout), so it is not known which numbers belong to which token. "
            + ("Call the model with more or fewer rows." if is_square else "Report its class to rotalabs-steer.")
        )

    def _as_streams(self, hidden: torch.Tensor, columns: int) -> torch.Tensor | None:
        """The streams in front, whatever the number of columns; None for a shape that no layout has."""
        if hidden.dim() == 4:
            return hidden if self.kind == "streams_first" else hidden.movedim(2, 0)
        if hidden.dim() != 3:
            return None
        if self.kind == SEQUENCE_FIRST:
            return hidden.transpose(0, 1).unsqueeze(0)
        if self.kind == "streams_in_sequence" and hidden.shape[1] % columns == 0:
            return torch.unflatten(hidden, 1, (-1, columns)).movedim(1, 0)
        if hidden.shape[-1] > self.width and hidden.shape[-1] % self.width == 0:
            return torch.unflatten(hidden, -1, (-1, self.width)).movedim(-2, 0)
        return hidden.unsqueeze(0)

    def tokens(self, hidden: torch.Tensor, rows: int, columns: int) -> Float[torch.Tensor, "batch seq hidden"]:
        """A layer's output as one activation for each token: the mean where there are several streams."""
        if self.is_plain(hidden, rows, columns):
            return hidden
        streams = self.streams(hidden, rows, columns)
        return streams[0] if self.kind == "streams_in_sequence" else streams.mean(dim=0)

    def replace(self, hidden: torch.Tensor, streams: torch.Tensor) -> torch.Tensor:
        """A layer's output with its streams replaced; the counterpart of `streams`."""
        replaced = hidden.clone()  # it also holds what is not a token of the call, and streams are a view into it
        self.streams(replaced, *streams.shape[1:3]).copy_(streams)
        return replaced


def _is_of_transformers(layer: nn.Module) -> bool:
    """Whether a layer's class is from transformers or derived from such a class, also inside wrappers of torch."""
    for name in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        layer = getattr(layer, name, layer)
    return any(base.__module__.startswith("transformers.models.") for base in type(layer).__mro__)


def _measured_order(model: nn.Module) -> str:
    """Which comes first in what the layers return, batch or sequence: found by running one row of two tokens."""
    try:
        ids = torch.tensor([[1, 2]], device=input_device(model))
        shape = first_tensor(layer_output(model, 0, {"input_ids": ids})).shape
    except INPUT_ERRORS:
        return UNKNOWN
    if len(shape) < 3:
        return UNKNOWN
    return SEQUENCE_FIRST if shape[:2] == (2, 1) else PLAIN if shape[:2] == (1, 2) else UNKNOWN


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
