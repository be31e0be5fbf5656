"""Steering inside code that `torch.compile` has made: one opaque operator at each steered layer.

The compiler traces the hook of a steered layer and finds this operator, which it does not look into. So the graph
holds neither vectors nor strengths nor positions: at run time the operator asks what is in force, exactly as the hook
does in code that is not compiled. Strengths, schedules and conditions change without recompiling, and the operator is
marked so that no CUDA graph captures it.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

from rotalabs_steer.errors import SteeringError
from rotalabs_steer.model.call_arguments import CallArguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.steering.steps import Step


class Steerer(Protocol):
    """Who knows what is in force on a model."""

    def steer_compiled(self, hidden: torch.Tensor, layer: int, arguments: CallArguments | None) -> torch.Tensor:
        """The layer's output as it is steered now."""
        ...

    def steps(self) -> Mapping[int, Sequence[Step]]:
        """The steps in force, by layer."""
        ...


_STEERERS: weakref.WeakValueDictionary[int, Steerer] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
_UNKNOWN_CACHE = -1
_UNKNOWN_GRADIENTS = (
    "Gradients of a compiled model are known for added vectors of constant strength only. Train without torch.compile, "
    "or steer with intervention='add', no condition, no schedule and a vector without gradient."
)


def register_steerer(steerer: Steerer) -> int:
    """A number under which the operator finds the model that it runs in: graphs hold numbers, not objects."""
    number = next(_NUMBERS)
    _STEERERS[number] = steerer
    return number


def steer_in_graph(hidden: torch.Tensor, layer: int, steerer: int, arguments: CallArguments | None) -> torch.Tensor:
    """Puts the operator into the graph that is being traced.

    Args:
        arguments: what the decoder was given, where its call is part of the same graph; else None.
    """
    if arguments is None:
        unread = (None, None, None, 0, _UNKNOWN_CACHE, "")
        return cast("torch.Tensor", _steer(hidden, layer, steerer, torch.is_grad_enabled(), *unread))
    given = arguments
    cached = _UNKNOWN_CACHE if given.cached is None else given.cached
    steered = _steer(
        hidden,
        layer,
        steerer,
        torch.is_grad_enabled(),
        given.tokens,
        given.mask,
        given.position_ids,
        given.rows,
        cached,
        given.unknown or "",
    )
    return cast("torch.Tensor", steered)


@torch.library.custom_op("rotalabs_steer::steer", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _steer(
    hidden: torch.Tensor,
    layer: int,
    steerer: int,
    wants_gradients: bool,
    tokens: torch.Tensor | None,
    mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    rows: int,
    cached: int,
    unknown: str,
) -> torch.Tensor:
    steering = _STEERERS.get(steerer)
    if steering is None:
        return hidden.clone()
    if wants_gradients and any(step.is_trained for step in steering.steps().get(layer) or ()):
        raise SteeringError(_UNKNOWN_GRADIENTS)
    arguments = None
    if tokens is not None:
        known = None if cached == _UNKNOWN_CACHE else cached
        arguments = CallArguments(tokens, rows, mask, position_ids, known, unknown or None)
    steered = steering.steer_compiled(hidden, layer, arguments)
    return steered.clone() if steered is hidden else steered.contiguous()  # an operator must not return its input


@_steer.register_fake
def _(hidden: torch.Tensor, *others: object) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@torch.library.custom_op("rotalabs_steer::steer_backward", mutates_args=())
def _backward(gradient: torch.Tensor, layer: int, steerer: int) -> torch.Tensor:
    steering = _STEERERS.get(steerer)
    steps = None if steering is None else steering.steps().get(layer)
    if any(not step.is_addition for step in steps or ()):
        raise SteeringError(_UNKNOWN_GRADIENTS)
    return gradient.clone()  # hidden + vector: the gradient passes as it is


@_backward.register_fake
def _(gradient: torch.Tensor, layer: int, steerer: int) -> torch.Tensor:
    return torch.empty_like(gradient)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # torch passes these by name
    ctx.layer, ctx.steerer = inputs[1:3]


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    layer, steerer = ctx.layer, ctx.steerer
    return _backward(gradient, layer, steerer), *[None] * 9


_steer.register_autograd(_gradients, setup_context=_remember)
