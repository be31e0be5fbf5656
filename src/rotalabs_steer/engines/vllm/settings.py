"""The settings of steering, which are a part of vLLM's `additional_config` and so reach every process of the engine."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import as_real
from rotalabs_steer.engines.vllm.catalogue import Catalogue, ServedModel
from rotalabs_steer.engines.vllm.requests import DEFAULT_MAX_STRENGTH
from rotalabs_steer.errors import OptionError
from rotalabs_steer.files.hub import find_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

CONFIG_KEY = "rotalabs_steer"
PLUGIN_NAME = "rotalabs_steer"

_GRAPH_VERSION = 1
"""Must be raised when steering adds other operations to the compiled graph, because vLLM keeps graphs between runs."""


@dataclass(frozen=True)
class SteeringSettings:
    """The arguments of `steering_config`, and two settings of our own.

    Attributes:
        capture: whether the engine reads activations instead of steering.
        key: the `Catalogue.key` of the API server, for its workers to compare; None if they started before it.
    """

    vectors: str | None = None
    max_strength: float = DEFAULT_MAX_STRENGTH
    layers: tuple[int, ...] | None = None
    check_model: bool = True
    capture: bool = False
    key: str | None = None

    @classmethod
    def of(cls, vllm_config: Any) -> SteeringSettings | None:
        """The settings of an engine; None if it has none.

        Raises:
            OptionError: the settings cannot be used.
        """
        config = vllm_config.additional_config
        given = config.get(CONFIG_KEY) if isinstance(config, dict) else None
        if given is None:
            return None
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(given, dict) or not set(given) <= set(names):
            raise OptionError(f"additional_config[{CONFIG_KEY!r}] is {given!r:.200}; it takes {', '.join(names)}.")
        layers = given.get("layers")
        settings = cls(**{**given, "layers": None if layers is None else tuple(layers)})
        most = as_real(settings.max_strength)
        if most is None or most <= 0:
            raise OptionError(f"max_strength is {settings.max_strength!r:.80}; it must be a finite number above 0.")
        if (settings.vectors is None) == (not settings.capture):
            raise OptionError("Give either a folder of vectors to steer by, or capture=True to extract.")
        return settings

    def catalogue(self, vllm_config: Any) -> Catalogue:
        """The vectors of the folder, checked against the engine's model; see `Catalogue.load`."""
        assert self.vectors is not None
        model = served_model(vllm_config)
        return Catalogue.load(Path(self.vectors), model, self.max_strength, self.layers, check_model=self.check_model)

    def graph_key(self, vllm_config: Any) -> dict[str, Any]:
        """The settings that the compiled graph depends on."""
        layers = () if self.vectors is None else self.catalogue(vllm_config).layers
        return {"version": _GRAPH_VERSION, "layers": list(layers), "rows": table_rows(vllm_config)}


def steering_config(
    vectors: str | os.PathLike[str],
    *,
    max_strength: float = DEFAULT_MAX_STRENGTH,
    layers: Sequence[int] | None = None,
    check_model: bool = True,
) -> dict[str, Any]:
    """`additional_config` of an engine that steers: `LLM(model, additional_config=steering_config("vectors"))`.

    Args:
        vectors: a folder of vector sets, one set, or a set on the Hugging Face Hub (`owner/name[@revision]`).
        max_strength: the largest absolute value of a strength that a request may ask for.
        layers: the decoder layers prepared for steering; None for all that a set has a vector for. Each holds
            (max_num_seqs + 1) rows of the model's width.
        check_model: refuse vectors that were made from another model.

    Raises:
        OptionError: VLLM_PLUGINS keeps vLLM from loading this plugin.
        FileNotFoundError: there are no vectors at the path, and no such repository.
    """
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN_NAME not in allowed.split(","):
        raise OptionError(
            f"VLLM_PLUGINS is {allowed!r}, so vLLM would not load {PLUGIN_NAME} and would run unsteered. Add it to the "
            "list, or unset VLLM_PLUGINS."
        )
    settings = {
        "vectors": str(find_vectors(vectors).absolute()),
        "max_strength": max_strength,
        "layers": None if layers is None else list(layers),
        "check_model": check_model,
    }
    return {CONFIG_KEY: settings}


def served_model(vllm_config: Any) -> ServedModel:
    """The model that vectors must fit, from the engine's configuration."""
    config = vllm_config.model_config
    text = config.hf_text_config
    fingerprint = {
        "model_type": str(getattr(text, "model_type", "")),
        "num_layers": config.get_total_num_hidden_layers(),
        "hidden_size": config.get_hidden_size(),
        "vocab_size": int(getattr(text, "vocab_size", 0)),
    }
    return ServedModel(str(config.model), fingerprint, config.dtype)


def table_rows(vllm_config: Any) -> int:
    """The number of rows of a steered layer's table: one for each request that can run at once, and the zero row."""
    return int(vllm_config.scheduler_config.max_num_seqs) + 1


def check_engine(vllm_config: Any, *, capture: bool) -> None:
    """Refuses an engine with features under which steering or reading would act on the wrong tokens.

    Raises:
        OptionError: the engine has such a feature.
    """
    # Some of these settings do not exist in every supported version of vLLM, hence `getattr`.
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    passes = getattr(compilation, "pass_config", None)
    refused = {
        "a KV connector (--kv-transfer-config)": vllm_config.kv_transfer_config is not None,
        "dual batch overlap (--enable-dbo)": getattr(parallel, "use_ubatching", False),
        "prefill context parallelism": getattr(parallel, "prefill_context_parallel_size", 1) > 1,
        "the sequence parallelism pass": bool(getattr(passes, "enable_sp", False)),
        "--kv-sharing-fast-prefill": getattr(vllm_config.cache_config, "kv_sharing_fast_prefill", False),
        "an encoder-decoder model": vllm_config.model_config.is_encoder_decoder,
        "a diffusion model": getattr(vllm_config.model_config, "is_diffusion", False),
        "elastic expert parallelism": getattr(parallel, "enable_elastic_ep", False),
        "a pooling model": vllm_config.model_config.runner_type == "pooling",
    }
    for feature, present in refused.items():
        if present:
            raise OptionError(f"Steering does not go together with {feature}: it would act on the wrong tokens.")
    caching = vllm_config.cache_config.enable_prefix_caching
    if capture and (caching or not vllm_config.model_config.enforce_eager):
        raise OptionError("capture needs an engine that is eager and without prefix caching: use extraction_engine.")
