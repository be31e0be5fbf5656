"""The hook of a steered layer, which `torch.compile` notices."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class LayerHook:
    """A forward hook on one layer, and a mark that keeps code from being used that was compiled without the hook.

    The compiler does not notice hooks that come and go. It does notice whether an instance has a `forward` attribute,
    so the layer gets one, with its own method as the value. Code compiled with the mark and code compiled without it
    are both kept: attaching again compiles nothing again.
    """

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Any, Any], Any]) -> None:
        self._layer = weakref.ref(layer)
        self._handle = layer.register_forward_hook(function, prepend=True)
        self._own_forward = layer.__dict__.get("forward")
        mark = _same(layer.forward)
        self._function = None if inspect.ismethod(mark) else mark
        layer.__dict__["forward"] = mark

    def remove(self) -> None:
        """Removes hook and mark. A `forward` that other code has put on the layer meanwhile stays."""
        self._handle.remove()
        layer = self._layer()
        mark = None if layer is None else layer.__dict__.get("forward")
        is_ours = getattr(mark, "__self__", None) is layer if self._function is None else mark is self._function
        if layer is None or not is_ours:
            return
        if self._own_forward is None:
            layer.__dict__.pop("forward", None)
        else:
            layer.__dict__["forward"] = self._own_forward


def _same(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method itself; a wrapper around a function that other code has put on the layer, to tell both apart."""
    if inspect.ismethod(forward):
        return forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return call
