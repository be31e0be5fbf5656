"""Running a model to measure it, and leaving it as it was."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.model.decoder import decoder_layers, transformers_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

INPUT_ERRORS = (
    RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, ImportError,
)  # fmt: skip
"""What models raise where they cannot take an input: each has its own way to say so."""

_PROBING: ContextVar[bool] = ContextVar("rotalabs_steer_probing", default=False)


@contextlib.contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Without dropout and, unless asked for, gradients; every module's mode is restored afterwards."""
    with _eval_mode(model), torch.enable_grad() if gradients else torch.inference_mode():
        yield


@contextlib.contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """As `evaluating`, and without compiled code, which may have been compiled before the hooks that read it."""
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """For calls that find out what a model supports: without gradients, dropout or compiled code.

    `ActivationHook`s do not capture these calls.
    """
    token = _PROBING.set(True)
    try:
        # Not in inference mode: what a model caches in its first call must remain fit for training.
        with _eval_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _PROBING.reset(token)


def is_probing() -> bool:
    """Whether this thread is inside a block of `probing`."""
    return _PROBING.get()


def layer_output(model: nn.Module, layer_index: int, inputs: Mapping[str, Any]) -> Any:
    """What a layer returns in a call that probes the model, before any other hook has changed it."""
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)

    handle = decoder_layers(model)[layer_index].register_forward_hook(keep, prepend=True)
    try:
        with probing(model):
            transformers_model(model)(**inputs)
    finally:
        handle.remove()
    return found[0]


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
