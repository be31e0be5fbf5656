"""A tiny random instance of every text-generating architecture in transformers, made from its configuration class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

from architectures.sizes import BY_MODEL_TYPE, BY_NAME, DECODER_LAYERS, IF_UNSET, IMAGE_TOWER, NEEDS_TIMM

_MAPPINGS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "image-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}


@dataclass(frozen=True)
class Architecture:
    """One entry of transformers' tables of generating models."""

    group: str
    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.group}-{self.model_type}"


# They draft for a target model and need what it has cached: neither runs alone.
DRAFTS = {"gemma4_assistant", "gemma4_unified_assistant"}

ARCHITECTURES = [
    Architecture(group, model_type, class_name)
    for group, mapping in _MAPPINGS.items()
    for model_type, class_name in mapping.items()
]


def build(architecture: Architecture) -> torch.nn.Module:
    """The same tiny model each time, in evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(architecture.model_type, decodes=architecture.group == "causal")
    model_class = getattr(transformers, architecture.class_name)
    model = model_class(_config_for(model_class, config)).eval()
    if model.can_generate():
        model.generation_config.update(pad_token_id=0, eos_token_id=None, decoder_start_token_id=1)
    _wake(model)
    return model


def tiny_config(model_type: str, decodes: bool = False) -> PretrainedConfig:
    """The default configuration of a model type with every size shrunk.

    Args:
        decodes: make a decoder of a model type that is an encoder or a decoder, such as BERT.
    """
    start = CONFIG_MAPPING[model_type]()
    changes = BY_MODEL_TYPE.get(model_type, {})
    if decodes and hasattr(start, "is_decoder"):
        changes = changes | {"is_decoder": True}
    config = _shrink(start, changes)
    if model_type in NEEDS_TIMM:
        object.__setattr__(config, "vision_config", IMAGE_TOWER)  # past the check that it is timm's
    return config


def _config_for(model_class: type, config: PretrainedConfig) -> PretrainedConfig:
    """The part of a composite configuration that a decoder-only class takes."""
    wanted = model_class.config_class
    parts = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    return next((part for part in parts if type(part) is wanted), config)


def _shrink(config: PretrainedConfig, changes: dict[str, Any]) -> PretrainedConfig:
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            inner = changes.get(name)
            settings[name] = _shrink(
                value, BY_MODEL_TYPE.get(value.model_type, {}) | (inner if isinstance(inner, dict) else {})
            )
        elif (_is_number(value) or (value is None and re.fullmatch(IF_UNSET, name))) and _by_name(name) is not None:
            settings[name] = _by_name(name)
    settings |= _layer_lists(config) | _token_ids(config)
    inner = {name for name, value in settings.items() if isinstance(value, PretrainedConfig)}
    settings |= {name: value for name, value in changes.items() if name not in inner and name != "model_type"}
    return type(config)(**settings)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _by_name(name: str) -> object | None:
    return next((value for pattern, value in BY_NAME.items() if re.fullmatch(pattern, name)), None)


def _layer_lists(config: PretrainedConfig) -> dict[str, list[Any]]:
    """Settings with an entry for each layer, cut down to layers that show every kind there is."""
    length = getattr(config, "num_hidden_layers", None)
    lists = {n: v for n, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == length}
    if not lists or length is None:
        return {}
    kinds = list(zip(*map(_as_names, lists.values()), strict=True))
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    rest = [index for index in range(length) if index not in firsts]
    chosen = sorted((firsts + rest)[:DECODER_LAYERS])
    return {name: [values[index] for index in chosen] for name, values in lists.items()}


def _as_names(values: Any) -> list[str]:
    return [str(value) for value in values]


def _token_ids(config: PretrainedConfig) -> dict[str, Any]:
    """Special tokens inside the small vocabulary, apart from each other and from the tokens of the tests."""
    usual = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    names = [n for n, v in vars(config).items() if re.search(r"token_(id|index)$", n) and isinstance(v, (int, list))]
    special = [name for name in names if name not in usual]
    return {name: usual[name] for name in names if name in usual} | {
        name: 95 - number for number, name in enumerate(special)
    }


def _wake(model: torch.nn.Module) -> None:
    """Makes parameters that start at zero count, so that no layer is a no-op."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.normal_(0.0, 0.1)
