"""Shapes and recommended layers of models by name, read from `data/models.json`.

The table helps before a model is loaded. The shape of a loaded model takes precedence: see `infer_model_config`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import ArchitectureError, ModelNameError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_DEPTH_RANGE = (0.45, 0.60)
"""Relative depth at which behaviours steer best: measured on SmolLM2-135M and Gemma-3-270M."""


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model and the layers at which behaviours steer well.

    Attributes:
        name: Hugging Face id or path.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        layer_template, residual_template, mlp_template, attn_template: paths of modules; `{i}` stands for the layer.
        recommended_layers: 0-based layers by behaviour.
        provenance: the source of each recommendation, by behaviour: "published: …" or "measured: …".
    """

    name: str
    num_layers: int
    hidden_size: int
    layer_template: str = "model.layers.{i}"
    residual_template: str = "model.layers.{i}"
    mlp_template: str = "model.layers.{i}.mlp"
    attn_template: str = "model.layers.{i}.self_attn"
    recommended_layers: dict[str, list[int]] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)

    def get_recommended_layers(self, behavior: str) -> list[int]:
        """The layers recommended for a behaviour; without a recommendation, those at 45 to 60 % of depth."""
        if behavior in self.recommended_layers:
            return list(self.recommended_layers[behavior])
        first, last = (round(share * self.num_layers) - 1 for share in _DEPTH_RANGE)
        return list(range(max(first, 0), max(last, 0) + 1))

    def get_provenance(self, behavior: str) -> str:
        """The source of `get_recommended_layers(behavior)`."""
        return self.provenance.get(behavior, "default: 45 to 60 % of depth")


def get_model_config(name: str) -> ModelConfig:
    """The configuration of a model by its full name, or by the part after the slash, in upper or lower case.

    Raises:
        ModelNameError: the name is empty or unknown; the message lists similar names.
    """
    config = find_model_config(name)
    if config is not None:
        return config
    if not name.strip():
        raise ModelNameError("The model name is empty. Give a Hugging Face id such as 'Qwen/Qwen3-8B'.")
    wanted = name.lower()
    containing = [known for known in MODEL_CONFIGS if _short(wanted) in known.lower()]
    short_names = {_short(known): known for known in MODEL_CONFIGS}
    nearest = containing or [
        short_names[near] for near in get_close_matches(_short(wanted), short_names, n=5, cutoff=0.4)
    ]
    raise ModelNameError(
        f"No configuration for {name!r}"
        + (f"; the nearest names are {', '.join(nearest[:6])}. " if nearest else ". ")
        + "A loaded model needs none: use infer_model_config(model)."
    )


def find_model_config(name: str) -> ModelConfig | None:
    """As `get_model_config`, but returns None for a name that is not in the table."""
    if not isinstance(name, str):
        raise ModelNameError(f"The model name is {name!r:.80}. Give a Hugging Face id such as 'Qwen/Qwen3-8B'.")
    wanted = name.strip().lower()
    return next((config for known, config in MODEL_CONFIGS.items() if wanted in (known.lower(), _short(known))), None)


def infer_model_config(model: nn.Module) -> ModelConfig:
    """The configuration of a loaded model: its own shape, and recommended layers where the table knows this model."""
    from rotalabs_steer.model.decoder import decoder_layers, hidden_size, layer_part, model_name, transformers_model

    name, layers = model_name(model), decoder_layers(model)
    inner = transformers_model(model)
    paths: dict[nn.Module, str] = {module: path for path, module in inner.named_modules()}
    template = paths[layers] + ".{i}"

    def part_template(component: str) -> str:
        try:
            part = layer_part(layers[0], component)
        except ArchitectureError:
            return ""
        return template + paths[part].removeprefix(f"{paths[layers]}.0")

    known = find_model_config(name.rstrip("/").rpartition("/")[2])
    # A model of another shape under a known name is another model, for which the recommendations do not hold.
    if known is not None and (known.num_layers, known.hidden_size) != (len(layers), hidden_size(model)):
        known = None
    return ModelConfig(
        name=name,
        num_layers=len(layers),
        hidden_size=hidden_size(model),
        layer_template=template,
        residual_template=template,
        mlp_template=part_template("mlp"),
        attn_template=part_template("attn"),
        recommended_layers={} if known is None else dict(known.recommended_layers),
        provenance={} if known is None else dict(known.provenance),
    )


def _read_table() -> dict[str, ModelConfig]:
    table = json.loads(files("rotalabs_steer.model").joinpath("data/models.json").read_text("utf-8"))
    return {entry["name"]: _parse_entry(entry) for entry in table["models"]}


def _parse_entry(entry: Mapping[str, Any]) -> ModelConfig:
    advice = entry.get("recommended_layers", {})
    return ModelConfig(
        name=entry["name"],
        num_layers=entry["num_layers"],
        hidden_size=entry["hidden_size"],
        recommended_layers={behavior: advised["layers"] for behavior, advised in advice.items()},
        provenance={behavior: f"{advised['provenance']}: {advised['source']}" for behavior, advised in advice.items()},
    )


def _short(name: str) -> str:
    return name.rpartition("/")[2].lower()


MODEL_CONFIGS: Mapping[str, ModelConfig] = MappingProxyType(_read_table())
"""The configurations by name."""
