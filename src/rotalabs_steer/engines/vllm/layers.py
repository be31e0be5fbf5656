"""Decoder layers that add a row of a table to every token, inside the compiled graph.

Each steered layer has a table of rows. All steered layers share the slots, which hold the number of the row to add to
each token of a step. Row 0 is zero and is added to unsteered tokens. Tables and slots are buffers at fixed addresses,
so that compiled code and CUDA graphs read their present contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rotalabs_steer.errors import ArchitectureError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class SteeringBuffers:
    """The buffers that the steered layers of one worker read.

    Attributes:
        tables: a table `[rows, hidden]` for each decoder layer, in the dtype of the residual stream.
        slots: `[tokens]`, the row that is added to each token of a step.
    """

    tables: dict[int, Float[torch.Tensor, "rows hidden"]]
    slots: Int[torch.Tensor, " tokens"]


def steer_layers(
    layers: dict[int, nn.Module],
    indices: Iterable[int],
    *,
    rows: int,
    tokens: int,
    hidden: int,
    dtype: torch.dtype,
    device: torch.device,
) -> SteeringBuffers:
    """Makes those decoder layers of `indices` that are in this process add rows of steering buffers.

    Args:
        layers: the decoder layers of this process, by index in the whole model.
    """
    slots = torch.zeros(tokens, dtype=torch.long, device=device)
    tables: dict[int, torch.Tensor] = {}
    classes: dict[Any, Any] = {}
    for index in sorted(set(indices) & set(layers)):
        layer = layers[index]
        tables[index] = torch.zeros(rows, hidden, dtype=dtype, device=device)
        layer.register_buffer("steering_table", tables[index], persistent=False)
        layer.register_buffer("steering_slots", slots, persistent=False)
        if type(layer) not in classes:
            classes[type(layer)] = _steered(type(layer))
        # The module stays the same object, so vLLM's own references to it, and its parameters, remain valid.
        layer.__class__ = classes[type(layer)]
    return SteeringBuffers(tables, slots)


def local_decoder_layers(model: nn.Module, num_layers: int) -> dict[int, nn.Module]:
    """The decoder layers of a vLLM model that run in this process, by index in the whole model.

    Raises:
        ArchitectureError: there is no list of that many layers, or more than one.
    """
    text_model: Any = getattr(model, "get_language_model", lambda: model)()
    lists = [m for m in text_model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    # A layer may hold a list of that length itself, for example of experts.
    lists = [m for m in lists if not any(m is part for other in lists if other is not m for part in other.modules())]
    if len(lists) != 1:
        raise ArchitectureError(
            f"{type(model).__name__} has {len(lists)} lists of {num_layers} modules, so it is unclear which are its "
            "decoder layers. Steer this model with transformers."
        )
    (found,) = lists
    return {index: layer for index, layer in enumerate(found) if type(layer).__name__ != "PPMissingLayer"}


def _steered(layer_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a decoder layer's class that adds the table's rows to the layer's output.

    A vLLM layer returns the residual stream, or a pair whose sum is the residual stream. The rows are added to the
    first of a pair, because in some models no later layer reads the second.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = layer_class.forward(self, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        slots = self.steering_slots[: hidden.shape[-2]]
        hidden = hidden + self.steering_table.index_select(0, slots)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    names = {"forward": forward, "__module__": layer_class.__module__, "__qualname__": layer_class.__qualname__}
    return type(layer_class.__name__, (layer_class,), names)
