"""The hook of a steered layer, which compiled code notices too."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class LayerHook:
    """The hook of one layer, and a mark by which code that was compiled without it is not used.

    The compiler does not notice hooks that come and go. It does notice whether a module has a `forward` of its own, so
    the layer gets one, which is the method that it has anyway. Code compiled for the layer with and without the mark is
    kept side by side: attaching again compiles nothing again.
    """

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Any, Any], Any]) -> None:
        self._layer = weakref.ref(layer)
        self._handle = layer.register_forward_hook(function, prepend=True)
        self._own_forward = layer.__dict__.get("forward")
        mark = _same(layer.forward)
        self._function = None if inspect.ismethod(mark) else mark
        layer.__dict__["forward"] = mark

    def remove(self) -> None:
        """Takes hook and mark off. A function that somebody has put in front meanwhile stays."""
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
    """The bound method itself; a function that somebody has put on the layer, inside another of its own identity."""
    if inspect.ismethod(forward):
        return forward

    def call(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    call.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return call
