"""Reading activations: `ActivationHook` while the model runs, `extract_activations` for one call.

hook = ActivationHook(model, layer_indices=[14, 15, 16])
with hook:
    model(**inputs)
activations = hook.get_activations()  # {layer: [batch, seq, hidden]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch

from rotalabs_steer.errors import ActivationError, OptionError
from rotalabs_steer.model.decoder import check_layer_indices, input_device
from rotalabs_steer.model.forward_calls import CallTracker
from rotalabs_steer.model.inference import is_probing
from rotalabs_steer.model.layer_outputs import ResidualLayout
from rotalabs_steer.model.layer_parts import LayerPart, find_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from jaxtyping import Float
    from torch import nn
    from torch.utils.hooks import RemovableHandle

TOKEN_POSITIONS = ("last", "first", "all")


class ActivationCache:
    """Activations by name, as `layer_N`."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[torch.Tensor]] = {}

    def store(self, name: str, activation: torch.Tensor) -> None:
        """Keeps a copy, detached from the graph."""
        self._chunks[name] = [activation.detach().clone()]

    def extend(self, name: str, activation: torch.Tensor) -> None:
        """Appends columns `[batch, more, hidden]` to what is kept under this name.

        `get` joins them, because joining at every token would take quadratic time.
        """
        chunks = self._chunks.get(name)
        if chunks is None or chunks[0].shape[0] != activation.shape[0]:
            self.store(name, activation)
        else:
            chunks.append(activation.detach().clone())

    def get(self, name: str) -> torch.Tensor | None:
        """The activation of this name, or None."""
        chunks = self._chunks.get(name)
        if chunks is None:
            return None
        if len(chunks) > 1:
            chunks[:] = [torch.cat(chunks, dim=1)]
        return chunks[0]

    def clear(self) -> None:
        """Forgets everything."""
        self._chunks.clear()

    def keys(self) -> list[str]:
        """The names, in the order in which they were stored."""
        return list(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, name: object) -> bool:
        return name in self._chunks


class ActivationHook:
    """Captures activations of some layers while the model runs.

    The hook captures what the next layer sees, so on a steered model it captures steered activations. A call that
    continues a KV cache adds to the activations of the calls before it, so after `generate` they cover prompt and
    generated tokens. A call without a cache starts anew.

    Args:
        model: a transformers model, or a PEFT model around one.
        layer_indices: 0-based decoder layers.
        component: "residual" (the layer's output), "mlp" or "attn" (what that part adds to the residual stream).
        token_position: the "last" or "first" *real* token of each row, without padding, or "all" columns of the call.

    Raises:
        OptionError, LayerError, ArchitectureError: an option or layer does not exist. The model stays unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        layer_indices: Sequence[int],
        component: str = "residual",
        token_position: str = "all",
    ) -> None:
        if token_position not in TOKEN_POSITIONS:
            raise OptionError(f"Unknown token position {token_position!r}. Use one of: {', '.join(TOKEN_POSITIONS)}.")
        self.model = model
        self.layer_indices = check_layer_indices(model, layer_indices)
        self.component = component
        self.token_position = token_position
        self.cache = ActivationCache()
        self._parts = find_parts(model, self.layer_indices, component)
        self._tracker = CallTracker.of(model)
        self._layout = ResidualLayout.of(model)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> Self:
        """Starts capturing, and forgets earlier activations."""
        if not self._handles:
            self.cache.clear()
            self._tracker.acquire(self.model)
            for index, part in self._parts.items():
                self._handles.append(part.module.register_forward_hook(self._hook_function(f"layer_{index}", part)))
        return self

    def detach(self) -> None:
        """Stops capturing, and keeps the activations."""
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            self._tracker.release(self.model)

    def get_activations(self) -> dict[int, Float[torch.Tensor, "batch seq hidden"]]:
        """The activations `[batch, seq, hidden]` of each layer; seq is 1 for "last" and "first".

        Raises:
            ActivationError: the model has not run while the hook was attached.
        """
        found = {index: self.cache.get(f"layer_{index}") for index in self.layer_indices}
        activations = {index: tensor for index, tensor in found.items() if tensor is not None}
        if len(activations) < len(found):
            raise ActivationError(
                f"Nothing was captured at layers {sorted(set(found) - set(activations))}: run the model inside "
                "`with hook:` (a model compiled before that does not run hooks)."
            )
        return activations

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _hook_function(self, name: str, part: LayerPart) -> Callable[[nn.Module, Any, Any], None]:
        def capture(module: nn.Module, inputs: Any, output: Any) -> None:
            if is_probing():
                return
            call = self._tracker.current()
            hidden = part.added(output, self._layout, call.batch_size, call.columns)
            call = call.last_columns(hidden.shape[1])
            if self.token_position == "all":
                (self.cache.extend if call.offset > 0 else self.cache.store)(name, hidden)
            elif self.token_position == "last":
                self.cache.store(name, _pick(hidden, call.last_real()))
            elif (first := call.first()) is not False:
                self.cache.store(name, _pick(hidden, first))

        return capture


def extract_activations(
    model: nn.Module,
    inputs: Mapping[str, Any],
    layer_indices: Sequence[int],
    component: str = "residual",
    token_position: str = "last",
) -> dict[int, Float[torch.Tensor, "batch seq hidden"]]:
    """The activations of one forward call, without gradients and without changing the model's mode.

    Args:
        inputs: the output of the tokenizer, which is moved to the model's device.

    Returns:
        Activations `[batch, seq, hidden]` by layer; seq is 1 for "last" (the default) and "first".
    """
    if not isinstance(inputs, Mapping):
        raise OptionError(
            f"inputs is a {type(inputs).__name__}; pass what the tokenizer returned, or {{'input_ids': ids}}."
        )
    device = input_device(model)
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with ActivationHook(model, layer_indices, component, token_position) as hook, torch.no_grad():
        model(**moved)
    return hook.get_activations()


def _pick(
    hidden: Float[torch.Tensor, "batch seq hidden"], columns: torch.Tensor | bool
) -> Float[torch.Tensor, "batch one hidden"]:
    """One token of each row: the one that `columns` marks, or the only one where `columns` is True."""
    if columns is True:
        return hidden[:, -1:]
    assert isinstance(columns, torch.Tensor)
    numbers = columns.to(hidden.device, torch.int64).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), numbers].unsqueeze(1)
