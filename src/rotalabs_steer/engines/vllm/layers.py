"""Decoder layers that add a row of a table to every token: part of the compiled graph, filled from outside.

Each steered layer holds a table of rows to add and, shared by all layers, the row of each token of the step. Row 0 is
zero: an unsteered token. Both are buffers at fixed addresses, so compiled code and CUDA graphs read what they hold now.
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
    """What the steered layers of one worker read.

    Attributes:
        tables: by decoder layer `[rows, hidden]`, in the dtype of the residual stream.
        slots: `[tokens]`, for every token of a step the row that is added to it.
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
    """Makes the decoder layers of `indices`, as far as they are in this process, read steering buffers.

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
        layer.__class__ = classes[type(layer)]
    return SteeringBuffers(tables, slots)


def local_decoder_layers(model: nn.Module, num_layers: int) -> dict[int, nn.Module]:
    """The decoder layers of a vLLM model that run in this process, by index in the whole model.

    Raises:
        ArchitectureError: there is no list of that many layers, or more than one.
    """
    text_model: Any = getattr(model, "get_language_model", lambda: model)()
    lists = [m for m in text_model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    lists = [m for m in lists if not any(m is part for other in lists if other is not m for part in other.modules())]
    if len(lists) != 1:
        raise ArchitectureError(
            f"{type(model).__name__} has {len(lists)} lists of {num_layers} modules, so its decoder layers cannot be "
            "told. Steer this model with transformers."
        )
    (found,) = lists
    return {index: layer for index, layer in enumerate(found) if type(layer).__name__ != "PPMissingLayer"}


def _steered(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The same layer, whose output has the table's rows added to it.

    A vLLM layer returns the residual stream, or a pair whose sum it is. Of a pair the first is added to: some models
    return as the second what nothing reads any more.
    """

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = layer_class.forward(self, *args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        slots = self.steering_slots[: hidden.shape[-2]]
        hidden = hidden + self.steering_table.index_select(0, slots)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    names = {"forward": forward, "__module__": layer_class.__module__, "__qualname__": layer_class.__qualname__}
    return type(layer_class.__name__, (layer_class,), names)
