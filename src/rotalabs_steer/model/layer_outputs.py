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

    The layout comes from what is known of the model, and the shape of every output is checked against it: with as many
    rows as columns `[batch, seq, hidden]` and `[seq, batch, hidden]` look alike.

    - "plain": `[batch, seq, hidden]`. Several residual streams, which one vector steers all and whose mean is captured,
      are along a dimension of their own (hyper-connections) or side by side in a wide hidden (Qwen4-Exp).
    - "sequence_first": `[seq, batch, hidden]` (XLNet, FSMT, ChatGLM).
    - "streams_first": `[streams, batch, seq, hidden]` (Gemma-3n).
    - "streams_in_sequence": streams behind each other in the sequence. The first of them is the model's hidden state,
      and is captured (ProphetNet).
    - "tokens_before": virtual prompt tokens before those of the call (CPM-Ant).
    - "padding_after": columns behind those of the call (Reformer, BigBird).
    - "last_columns": some layers see the last columns of the call only (Gemma-4's with shared keys, in `generate`).
    - "patches": columns are patches of bytes, no more than there are bytes (BLT).
    - "unknown": `[batch, seq, hidden]` or `[seq, batch, hidden]`; a call that does not tell which is refused.
    """

    kind: str
    width: int

    @classmethod
    def of(cls, model: nn.Module) -> ResidualLayout:
        """The layout of this model's layers. One of code outside transformers is found by running two tokens."""
        model_type = str(getattr(text_config(transformers_model(model)), "model_type", ""))
        layouts = architecture_table().layouts
        if model_type in layouts or _is_of_transformers(decoder_layers(model)[0]):
            return cls(layouts.get(model_type, PLAIN), hidden_size(model))
        return cls(_measured_order(model), hidden_size(model))

    @property
    def plain_width(self) -> int | None:
        """The width of outputs that may be taken as they are; None where no shape is surely `[batch, seq, hidden]`."""
        return None if self.kind in (SEQUENCE_FIRST, UNKNOWN) else self.width

    def is_plain(self, hidden: torch.Tensor, rows: int, columns: int) -> bool:
        """Whether a layer's output is `[batch, seq, hidden]` for the tokens of the call and nothing else."""
        return hidden.shape == (rows, columns, self.plain_width)

    def streams(self, hidden: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """A view of a layer's output as `[streams, batch, seq, hidden]`, for a call of so many rows and columns.

        Raises:
            ArchitectureError: the output does not have the shape that the layout and the call say.
        """
        streams = self._as_streams(hidden, columns)
        square = self.kind == UNKNOWN and rows == columns > 1
        if streams is not None and not square:
            seen = streams.shape[2]
            if self.kind == "tokens_before" and seen > columns:
                streams = streams[:, :, seen - columns :]
            elif self.kind == "padding_after" and seen > columns:
                streams = streams[:, :, :columns]
            fewer = self.kind in ("last_columns", "patches") and seen <= columns
            if streams.shape[1:] == (rows, seen if fewer else columns, self.width):
                return streams
            if self.kind == UNKNOWN and streams.shape[1:] == (columns, rows, self.width):
                return streams.transpose(1, 2)
        raise ArchitectureError(
            f"A layer returned {list(hidden.shape)} for {rows} rows of {columns} tokens and a residual stream of width "
            f"{self.width} ({self.kind} layout), so it is not known which numbers belong to which token. "
            + ("Call the model with more or fewer rows." if square else "Report its class to rotalabs-steer.")
        )

    def _as_streams(self, hidden: torch.Tensor, columns: int) -> torch.Tensor | None:
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
        """A layer's output as one activation a token: the mean where there are several streams."""
        if self.is_plain(hidden, rows, columns):
            return hidden
        streams = self.streams(hidden, rows, columns)
        return streams[0] if self.kind == "streams_in_sequence" else streams.mean(dim=0)

    def replace(self, hidden: torch.Tensor, streams: torch.Tensor) -> torch.Tensor:
        """A layer's output with its streams replaced; the counterpart of `streams`."""
        replaced = hidden.clone()
        self.streams(replaced, *streams.shape[1:3]).copy_(streams)
        return replaced


def _is_of_transformers(layer: nn.Module) -> bool:
    """Whether a layer is of a class of transformers, or of one made from it, also inside wrappers of torch."""
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
