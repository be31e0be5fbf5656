"""Folds constant additions into biases.

An addition can go into a bias whose value reaches the layer's output unchanged, or multiplied by a constant. Such a
bias is found by trying: a random vector is added to one bias after the other, from the end of the layer, and the
layer's output must change by a multiple of that vector at every token. This excludes biases before a norm, in experts,
and in attention outputs that the mlp reads, without a list of architectures.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rotalabs_steer.baking.trial import build, check_same, logits, probe_tokens, rounding, state_of, tolerance
from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.activations import ActivationHook
from rotalabs_steer.model.decoder import decoder_layers, text_config
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.vectors import SteeringVector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Float
    from transformers import PretrainedConfig, PreTrainedModel

# Model types without a bias behind the mlp that are equivalent to a Llama with these settings. Their weights have the
# same names.
_SAME_AS_LLAMA: Mapping[str, dict[str, Any]] = {
    "mistral": {"attention_bias": False},
    "qwen2": {"attention_bias": True},
}
# Settings that must not be copied into the configuration of that Llama.
_NOT_OF_LLAMA = {
    "model_type",
    "architectures",
    "transformers_version",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
}


@dataclass(frozen=True)
class _Place:
    """A bias, and the factor by which its value is multiplied on the way to the layer's output."""

    name: str
    factor: float


def fold_additions(model: PreTrainedModel, additions: Mapping[int, Float[torch.Tensor, " hidden"]]) -> PreTrainedModel:
    """A new model whose biases add these vectors, by layer.

    Raises:
        ArchitectureError: a layer has no bias that reaches its output, under any setting of the configuration.
    """
    tokens = probe_tokens(model)
    unsteered = logits(model, tokens)
    tried = []
    for model_class, config in _variants(model):
        biases = _added_biases(model, model_class, config)
        if biases is None:
            continue
        baked = build(model_class, config, state_of(model) | biases, model)
        difference = float((logits(baked, tokens) - unsteered).abs().max())
        if difference > tolerance(model.dtype) * float(unsteered.abs().max()):
            continue  # a setting changes more than the biases, which are still zero
        places = {layer: _find_place(baked, layer, tokens) for layer in additions}
        tried.append(_settings(model, model_class, config))
        if None not in places.values():
            _add(baked, additions, places)
            check_same(logits(baked, tokens), _steered(model, additions, tokens), unsteered, model)
            return baked
    raise ArchitectureError(
        f"{type(model).__name__} has no bias whose value reaches the output of layers {sorted(additions)} unchanged "
        f"(tried: {'; '.join(tried)}). A norm behind the mlp, experts or a missing bias are the usual reasons. "
        "Steer it with an injector, or export the vectors to an engine that adds them."
    )


def _variants(model: PreTrainedModel) -> Iterator[tuple[type[PreTrainedModel], PretrainedConfig]]:
    """The model's own configuration, one for each bias that can be switched on, and that of the equivalent Llama."""
    yield type(model), copy.deepcopy(model.config)
    off = [name for name, value in vars(text_config(model)).items() if value is False and "bias" in name]
    for name in sorted(off, key=lambda name: "mlp" not in name):  # biases of the mlp are the most likely to fit
        config = copy.deepcopy(model.config)
        setattr(config.get_text_config(decoder=True), name, True)
        yield type(model), config
    settings = _SAME_AS_LLAMA.get(model.config.model_type)
    if settings is not None and not _slides(model.config):
        known = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_LLAMA}
        config = AutoConfig.for_model("llama", **(known | {"mlp_bias": True} | settings))
        yield AutoModelForCausalLM._model_mapping[type(config)], config


def _slides(config: PretrainedConfig) -> bool:
    """Whether attention has a sliding window, which Llama does not support."""
    window = getattr(config, "sliding_window", None)
    return window is not None and getattr(config, "use_sliding_window", True) is not False


def _added_biases(
    model: PreTrainedModel, model_class: type[PreTrainedModel], config: PretrainedConfig
) -> dict[str, torch.Tensor] | None:
    """Zeros for the biases that a variant has and the model does not; None if their weights differ in another way."""
    state = model.state_dict()
    with torch.device("meta"):
        wanted = model_class(config).state_dict()
    missing = wanted.keys() - state.keys()
    if state.keys() - wanted.keys() or not all(name.endswith("bias") for name in missing):
        return None
    if any(state[name].shape != tensor.shape for name, tensor in wanted.items() if name in state):
        return None
    return {name: torch.zeros(wanted[name].shape) for name in missing}


def _find_place(model: PreTrainedModel, layer: int, tokens: torch.Tensor) -> _Place | None:
    """The last bias of a layer that changes the layer's output by a multiple of itself at every token."""
    before = _layer_output(model, layer, tokens)
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(before.shape[-1], generator=generator) * before.std()
    for name, bias in reversed(list(decoder_layers(model)[layer].named_parameters())):
        if not name.endswith("bias") or bias.shape != probe.shape:
            continue
        kept = bias.detach().clone()
        with torch.no_grad():
            bias.add_(probe.to(bias.device, bias.dtype))
        moved = _layer_output(model, layer, tokens) - before
        with torch.no_grad():
            bias.copy_(kept)  # subtracting the probe would leave rounding errors
        factor = float((moved @ probe).mean() / (probe @ probe))  # least squares
        off = (moved - factor * probe).abs()
        # Additions are divided by the factor, so a tiny one would make large biases.
        if abs(factor) > 1e-3 and bool((off <= rounding(model.dtype) * (before.abs() + before.std())).all()):
            return _Place(name, factor)
    return None


@torch.no_grad()
def _layer_output(model: PreTrainedModel, layer: int, tokens: torch.Tensor) -> torch.Tensor:
    with ActivationHook(model, [layer]) as hook:
        model(input_ids=tokens, use_cache=False)
        return hook.get_activations()[layer].float().cpu()


@torch.no_grad()
def _add(model: PreTrainedModel, additions: Mapping[int, torch.Tensor], places: Mapping[int, _Place | None]) -> None:
    for layer, delta in additions.items():
        place = places[layer]
        assert place is not None
        bias = decoder_layers(model)[layer].get_parameter(place.name)
        bias.copy_((bias.float().cpu() + delta / place.factor).to(bias.device, bias.dtype))


def _steered(model: PreTrainedModel, additions: Mapping[int, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    vectors = [SteeringVector("baked", layer, delta, "") for layer, delta in additions.items()]
    with ActivationInjector(model, vectors, check_model=False):
        return logits(model, tokens)


def _settings(model: PreTrainedModel, model_class: type[PreTrainedModel], config: PretrainedConfig) -> str:
    """How a variant differs from the model's own configuration, for the error message."""
    if model_class is not type(model):
        return f"as {model_class.__name__}"
    mine, theirs = vars(text_config(model)), vars(config.get_text_config(decoder=True))
    changed = [name for name, value in theirs.items() if name in mine and "bias" in name and mine[name] is not value]
    return f"with {changed[0]}=True" if changed else "as configured"
