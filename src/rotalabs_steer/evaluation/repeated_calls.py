"""Calls of a model with the same input under different steering.

Nothing below the lowest steered layer changes from one call to the next. So what that layer returns, before anything
is added to it, is kept, and from then on the layers up to it compute nothing. That spares about half of what measuring
a mid-depth layer at several strengths costs, and changes no result. A probe of the model decides whether it works
there: not where later layers take more from earlier ones than their output.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.attachment import SteeredModel
from rotalabs_steer.decoder import decoder_layers, transformers_model
from rotalabs_steer.text_batches import padded_batch, probe_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

_PROBE_TOLERANCE = 1e-5
_ONE_AT_A_TIME = threading.RLock()
"""Two threads that replaced the same layer's function would restore each other's."""


class RepeatedCall:
    """One input of a model, to be called with again and again. Keeps one hidden state for each layer steered so far.

    Args:
        inputs: keyword arguments of the model, the same for every call.
        keep: off for what is called once, or would take too much memory: then every call computes everything.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], *, keep: bool = True) -> None:
        self._model, self._inputs, self._keep = model, inputs, keep
        self._kept: dict[int, Any] = {}

    def logits(self) -> torch.Tensor:
        """Of the model as it is steered now, in the calling thread."""
        steered = min(SteeredModel.of(self._model).steps(), default=None)
        begin = max((layer for layer in self._kept if steered is None or layer <= steered), default=None)
        new = self._keep and steered is not None and steered != begin and _can_begin_at(self._model, steered)
        return self._run(begin, steered if new else None)

    def _run(self, begin: int | None, keep: int | None) -> torch.Tensor:
        """Calls the model from what one layer returned on, and keeps what another returns."""
        layers = decoder_layers(self._model)
        found: list[Any] = []

        def keeping(*args: Any, **kwargs: Any) -> Any:
            found.append(original(*args, **kwargs))
            return found[-1]

        with _ONE_AT_A_TIME, contextlib.ExitStack() as stack:
            if begin is not None:
                returned = self._kept[begin]
                for layer in layers[: begin + 1]:
                    stack.enter_context(_calling_instead(layer, lambda *_, **__: returned))
            if keep is not None:
                original = layers[keep].forward
                stack.enter_context(_calling_instead(layers[keep], keeping))
            logits: torch.Tensor = self._model(**self._inputs).logits
        if keep is not None and len(found) == 1 and isinstance(found[0], (torch.Tensor, tuple)):
            self._kept[keep] = found[0]
        return logits


@contextlib.contextmanager
def _calling_instead(layer: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """In this thread a layer's hooks run as ever, but around another function than its own `forward`."""
    original, own, thread = layer.forward, layer.__dict__, threading.get_ident()
    before = own.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (function if threading.get_ident() == thread else original)(*args, **kwargs)

    own["forward"] = forward
    try:
        yield
    finally:
        del own["forward"]
        own |= {} if before is None else {"forward": before}


def _can_begin_at(model: nn.Module, layer_index: int) -> bool:
    """Whether this model comes to its own result when the layers up to this one return what they returned before."""
    known = _PROBED.setdefault(transformers_model(model), {})
    if layer_index not in known:
        known[layer_index] = _agrees(model, layer_index)
    return known[layer_index]


def _agrees(model: nn.Module, layer_index: int) -> bool:
    """Whether a call comes out the same once it begins at a layer, and once more: nothing kept may have changed."""
    with torch.inference_mode():
        try:
            call = RepeatedCall(model, padded_batch(model, [0, 1], probe_texts(model)).inputs)
            whole = call._run(None, layer_index)
            begun = [call._run(layer_index, None) for _ in range(2)]
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError):
            return False  # a layer above misses something of the layers below, and says so in its own way
    allowed = _PROBE_TOLERANCE * float(whole.abs().max())
    return all(float((logits - whole).abs().max()) <= allowed for logits in begun)


_PROBED: weakref.WeakKeyDictionary[nn.Module, dict[int, bool]] = weakref.WeakKeyDictionary()
