"""Running a model to measure it, and leaving it as it was."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Without dropout and, unless asked for, gradients; every module's mode is restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """Evaluating, and without compiled code, which may have been compiled without the readers."""
    with evaluating(model), torch.compiler.set_stance("force_eager"):
        yield
