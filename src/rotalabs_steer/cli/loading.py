"""The model that a verb is told to work on, and what a terminal shows while it is loaded."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.model import loading
from rotalabs_steer.model.loading import SAMPLE, resolve_model, resolve_source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer

__all__ = ["SAMPLE", "load_model", "resolve_model", "resolve_source"]


def load_model(
    name: str, template_options: Mapping[str, Any] | None = None, console: Console | None = None
) -> tuple[nn.Module, ChatTokenizer]:
    """Model and tokenizer, as `loading.load_model` gives them.

    Args:
        console: shows on a terminal that the model is being loaded, and the bars of downloads; by default nothing is
            shown.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights that are loaded, which takes seconds
    if console is None or console.quiet or not console.is_terminal:
        disable_progress_bars()  # of downloads
    local = Path(resolve_model(name)).is_dir()  # a download shows bars of its own
    with console.status(f"loading {name}") if console is not None and local else contextlib.nullcontext():
        return loading.load_model(name, template_options)
