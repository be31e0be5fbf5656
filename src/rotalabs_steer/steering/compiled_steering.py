"""Steering inside code that `torch.compile` has made: one opaque operator at each steered layer.

The compiler traces the hook of a steered layer and finds this operator, which it does not look into. So the graph
holds neither vectors nor strengths nor positions: at run time the operator asks what is in force, exactly as the hook
does in code that is not compiled. Strengths, schedules and conditions change without recompiling, and the operator is
marked so that no CUDA graph captures it.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch

from rotalabs_steer.errors import SteeringError
from rotalabs_steer.model.call_arguments import CallArguments

if TYPE_CHECKING:
    from rotalabs_steer.steering.attachment import SteeredDecoder

_DECODERS: weakref.WeakValueDictionary[int, SteeredDecoder] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()
_UNKNOWN_GRADIENTS = (
    "Gradients of a compiled model are known for added vectors of constant strength only. Train without torch.compile, "
    "or steer with intervention='add', no condition, no schedule and a vector without gradient."
)


def register_steered(decoder: SteeredDecoder) -> int:
    """A number under which the operator finds the decoder that it runs in, because graphs cannot hold objects."""
    number = next(_NUMBERS)
    _DECODERS[number] = decoder
    return number


def steer_in_graph(hidden: torch.Tensor, layer: int, decoder: int, arguments: CallArguments | None) -> torch.Tensor:
    """Puts the operator into the graph that is being traced.

    Args:
        arguments: what the decoder was given, where its call is part of the same graph; else None.
    """
    given: tuple[Any, ...] = (None, 0, None, None, None, None)
    if arguments is not None:
        given = (
            arguments.tokens,
            arguments.rows,
            arguments.mask,
            arguments.position_ids,
            arguments.cached,
            arguments.unknown,
        )
    return cast("torch.Tensor", _steer(hidden, layer, decoder, torch.is_grad_enabled(), *given))


@torch.library.custom_op("rotalabs_steer::steer", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _steer(
    hidden: torch.Tensor,
    layer: int,
    decoder: int,
    wants_gradients: bool,
    tokens: torch.Tensor | None,
    rows: int,
    mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cached: int | None,
    unknown: str | None,
) -> torch.Tensor:
    steered = _DECODERS.get(decoder)
    if steered is None:  # compiled code outlived the model that it was traced in
        return hidden.clone()
    if wants_gradients and any(step.is_trained for step in steered.steps().get(layer) or ()):
        raise SteeringError(_UNKNOWN_GRADIENTS)
    arguments = None
    if tokens is not None:
        arguments = CallArguments(tokens, rows, mask, position_ids, cached, unknown)
    output = steered.steer_compiled(hidden, layer, arguments)
    return output.clone() if output is hidden else output.contiguous()  # an operator must not return its input


@_steer.register_fake
def _(hidden: torch.Tensor, *others: object) -> torch.Tensor:
    return torch.empty_like(hidden, memory_format=torch.contiguous_format)


@torch.library.custom_op("rotalabs_steer::steer_backward", mutates_args=())
def _backward(gradient: torch.Tensor, layer: int, decoder: int) -> torch.Tensor:
    steered = _DECODERS.get(decoder)
    steps = None if steered is None else steered.steps().get(layer)
    if any(not step.is_addition for step in steps or ()):
        raise SteeringError(_UNKNOWN_GRADIENTS)
    return gradient.clone()  # hidden + vector: the gradient passes as it is


@_backward.register_fake
def _(gradient: torch.Tensor, layer: int, decoder: int) -> torch.Tensor:
    return torch.empty_like(gradient)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # torch passes these by name
    ctx.layer, ctx.decoder = inputs[1:3]


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    layer, decoder = ctx.layer, ctx.decoder
    return _backward(gradient, layer, decoder), *[None] * 9


_steer.register_autograd(_gradients, setup_context=_remember)
