"""The decoder of any transformers model: its layers, their parts and its shape.

Everywhere, `layer_index` is the 0-based index into `decoder_layers(model)`, and "residual" means that layer's output:
what `output_hidden_states[layer_index + 1]` shows.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from rotalabs_steer.arguments import as_integer, plain_value
from rotalabs_steer.errors import ArchitectureError, LayerError, OptionError
from rotalabs_steer.model.architectures import architecture_table

SHAPE_FACTS = ("model_type", "num_layers", "hidden_size")
"""The entries of two models' fingerprints that must agree, so that a vector of one fits the other."""

COMPONENTS = ("residual", "mlp", "attn")

_MAX_HOPS = 4

TOKEN_ARGUMENTS = ("input_ids", "inputs_embeds", "input_embeds", "decoder_input_ids")
"""Names under which modules take tokens or their embeddings."""


def transformers_model(model: nn.Module) -> nn.Module:
    """The transformers model inside wrappers such as PEFT's: the module that has the `config` and `generate` in use."""
    inner = getattr(model, "_orig_mod", model)  # the model that torch.compile wraps
    get_base_model = getattr(inner, "get_base_model", None)
    if callable(get_base_model):
        inner = get_base_model()
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = inner.module
    if getattr(inner, "config", None) is None:
        raise ArchitectureError(
            f"{type(model).__name__} has no `config`, so it is not a transformers model. "
            "Pass the model that AutoModelForCausalLM.from_pretrained returns."
        )
    return inner


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a transformers model, in the order in which they run.

    Raises:
        ArchitectureError: no list of decoder layers can be found.
    """
    return find_decoder(model)[1]


def find_decoder(model: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The module that turns tokens or their embeddings into the decoder layers' input, and the list of these layers."""
    inner = transformers_model(model)
    path = architecture_table().layer_paths.get(getattr(inner.config, "model_type", ""))
    if path is not None:
        named = None
        with contextlib.suppress(AttributeError):  # a model without a head lacks the first step of the path
            named = inner.get_submodule(path)
        if isinstance(named, nn.ModuleList):
            return _takes_tokens(inner, named), named

    length = getattr(text_config(inner), "num_hidden_layers", None)
    get_decoder = getattr(inner, "get_decoder", None)
    for start in (get_decoder() if callable(get_decoder) else None, inner):
        if isinstance(start, nn.Module):
            layers = _follow_names(start) or _by_length(start, length)
            if layers is not None:
                return _takes_tokens(inner, layers), layers
    raise ArchitectureError(
        f"No decoder layers found in {type(inner).__name__}: looked for a ModuleList called "
        f"{', '.join(architecture_table().layer_lists)} and for one of {length} modules. "
        "If this is a decoder, report its class to rotalabs-steer."
    )


def check_component(component: str) -> None:
    """Raises an `OptionError` that lists the components, unless this is one."""
    if component not in COMPONENTS:
        raise OptionError(f"Unknown component {component!r}. Use one of: {', '.join(COMPONENTS)}.")


def part_names(layer: nn.Module, component: str) -> list[str]:
    """Names of the modules of a layer that may be its "mlp" or "attn", the likeliest first."""
    named: dict[str, nn.Module] = dict(layer.named_modules())
    # Layers with a single part often call it `mixer`, whether it is an MLP or attention. The class name says which.
    kinds = {"mixer": "mlp" if re.search("mlp|moe", type(named.get("mixer")).__name__, re.IGNORECASE) else "attn"}
    names = architecture_table().parts[component]
    return [name for name in names if name in named and kinds.get(name, component) == component]


def layer_part(layer: nn.Module, component: str) -> nn.Module:
    """The module that a decoder layer calls its "mlp" or "attn", or the layer itself for "residual".

    It is found by name, and may return something other than what the layer adds to the residual stream: see
    `find_parts`.

    Raises:
        OptionError: unknown component.
        ArchitectureError: this layer has no such part.
    """
    check_component(component)
    if component == "residual":
        return layer
    names = part_names(layer, component)
    if names:
        return layer.get_submodule(names[0])
    raise ArchitectureError(
        f"{type(layer).__name__} has no {component!r} part; its parts are "
        f"{', '.join(name for name, _ in layer.named_children())}. Use component='residual'."
    )


def hidden_size(model: nn.Module) -> int:
    """Width of the residual stream, read from the configuration of the text model, else from that of the decoder."""
    inner = transformers_model(model)
    for config in (text_config(inner), getattr(find_decoder(inner)[0], "config", None)):
        for name in ("hidden_size", "n_embd", "d_model", "dim"):
            size = getattr(config, name, None)
            if isinstance(size, int):
                return size
    raise ArchitectureError(f"{type(inner.config).__name__} does not say how wide the residual stream is.")


def input_device(model: nn.Module) -> torch.device:
    """The device for the model's inputs, also where accelerate keeps the weights on other devices or on disk."""
    embeddings: Any = model
    with contextlib.suppress(NotImplementedError):  # a few models do not say which module it is
        embeddings = transformers_model(model).get_input_embeddings()  # type: ignore[operator]
    # Weights that are loaded only while they are used are on the meta device in between, so accelerate is asked first.
    hook = getattr(embeddings, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):  # accelerate's SequentialHook has several
        device = getattr(one, "execution_device", None)
        if device is not None:
            return torch.device(device)
    parameters = itertools.chain(embeddings.parameters(), model.parameters())
    devices: list[torch.device] = [parameter.device for parameter in parameters]
    return next((device for device in devices if device.type != "meta"), devices[0])


def fastest_device() -> torch.device:
    """The default device for loading a model: the GPU, if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def model_name(model: nn.Module) -> str:
    """The name or path the model was loaded from, or its class name."""
    inner = transformers_model(model)
    return getattr(inner.config, "_name_or_path", "") or type(inner).__name__


def model_fingerprint(model: nn.Module) -> dict[str, str | int]:
    """A description of the model, stored with a vector. Its `SHAPE_FACTS` are compared when the vector is used."""
    config = text_config(transformers_model(model))
    return {
        "model_type": str(getattr(config, "model_type", "")),
        "num_layers": len(decoder_layers(model)),
        "hidden_size": hidden_size(model),
        "vocab_size": int(getattr(config, "vocab_size", 0)),
    }


def check_layer_indices(model: nn.Module, layer_indices: Iterable[int] | int) -> list[int]:
    """The layer indices as a list, each checked against the model.

    Args:
        layer_indices: one or several; integers and arrays of numpy and torch are allowed.

    Raises:
        LayerError: an index is not an integer in `[0, number of layers)` or occurs twice, or none is given.
    """
    count = len(decoder_layers(model))
    value = plain_value(layer_indices)
    given = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if not given:
        raise LayerError("No layer index given: name at least one decoder layer.")
    indices: list[int] = []
    for index in given:
        layer = as_integer(index)
        if layer is None or not 0 <= layer < count:
            raise LayerError(
                f"Layer {index!r} does not exist: {model_name(model)} has {count} decoder layers, "
                f"0 to {count - 1} (indices are 0-based integers and never negative)."
            )
        indices.append(layer)
    if len(set(indices)) != len(indices):
        raise LayerError(f"Layer indices {indices} name a layer twice; name each once.")
    return indices


def text_config(model: nn.Module) -> Any:
    """The configuration of the text decoder, also of a multimodal or encoder-decoder model."""
    config: Any = model.config
    get_text_config = getattr(config, "get_text_config", None)
    return get_text_config(decoder=True) if callable(get_text_config) else config


def _follow_names(module: nn.Module) -> nn.ModuleList | None:
    """The list of layers that the usual names lead to, through a few wrappers at most."""
    for _ in range(_MAX_HOPS + 1):
        for name in architecture_table().layer_lists:
            layers = getattr(module, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) > 0:
                return layers
        following = (getattr(module, name, None) for name in architecture_table().wrappers)
        step = next((m for m in following if isinstance(m, nn.Module) and m is not module), None)
        if step is None:
            return None
        module = step
    return None


def _by_length(module: nn.Module, length: int | None) -> nn.ModuleList | None:
    """The first list of so many modules, for models with names of their own."""
    lists = (part for part in module.modules() if isinstance(part, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == length), None)


def _takes_tokens(inner: nn.Module, layers: nn.ModuleList) -> nn.Module:
    """The nearest module around the layers whose forward call takes tokens or embeddings."""
    path = next(name for name, module in inner.named_modules() if module is layers)
    while path:
        path = path.rpartition(".")[0]
        module = inner.get_submodule(path)
        if any(name in inspect.signature(module.forward).parameters for name in TOKEN_ARGUMENTS):
            return module
    return inner
