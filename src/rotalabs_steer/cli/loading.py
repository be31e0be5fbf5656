"""The model that a verb is told to work on, and what a terminal shows while it is loaded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.integrations.template_options import parse_template_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model and its tokenizer. As text it is what a verb says first, as in `SmolLM2-135M-Instruct on cpu, float32`.

    Attributes:
        facts: name, device and dtype, as the JSON of a verb has them.
    """

    network: nn.Module
    chat: ChatTokenizer
    facts: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.facts['model']} on {self.facts['device']}, {self.facts['dtype']}"


def load_model(
    name: str, template: Mapping[str, Any] | Sequence[str] | None = None, console: Console | None = None
) -> LoadedModel:
    """The model of that name.

    Args:
        template: options of the chat template, by name or as `--template` has them.
        console: shows on a terminal that the model is being loaded, and the bars of downloads; by default nothing is
            shown.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    from rotalabs_steer.model import loading
    from rotalabs_steer.model.decoder import input_device
    from rotalabs_steer.sample_model import SAMPLE_MODEL

    options = parse_template_options(template)
    logging.disable_progress_bar()  # of weights that are loaded, which takes seconds
    if console is None or console.quiet or not console.is_terminal:
        disable_progress_bars()  # of downloads
    local = Path(loading.resolve_model(name)).is_dir()  # a download shows bars of its own
    with console.status(f"loading {name}") if console is not None and local else contextlib.nullcontext():
        network, chat = loading.load_model(name, options)
    facts = {
        "model": SAMPLE_MODEL if name == loading.SAMPLE else name,
        "device": str(input_device(network)),
        "dtype": str(getattr(network, "dtype", "unknown")).removeprefix("torch."),
    }
    return LoadedModel(network, chat, facts)
