"""Digests of a model and a tokenizer, so that saved work is continued only with the same ones.

A path or a name says too little: the weights under it may be trained further, merged, quantised, or get an adapter.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.model.decoder import transformers_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_NOT_OF_THE_WEIGHTS = ("_name_or_path", "transformers_version", "_from_model_config")


def model_digest(model: nn.Module) -> str:
    """A SHA-256 of a model's configurations, weights, dtypes, adapters and attention implementation.

    The generation configuration counts, because a penalty or a stop token changes what the model writes. Every weight
    is read, which takes about a second for each gigabyte.
    """
    inner: Any = transformers_model(model)
    configs = [inner.config, getattr(inner, "generation_config", None)]
    described = [
        {name: value for name, value in config.to_dict().items() if name not in _NOT_OF_THE_WEIGHTS}
        for config in configs
        if config is not None
    ]
    attention = getattr(inner.config, "_attn_implementation", None)
    digest = hashlib.sha256(
        json.dumps([type(inner).__name__, described, attention], sort_keys=True, default=str).encode()
    )
    for name, tensor in _tensors(inner):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.device.type != "meta":
            digest.update(tensor_bytes(tensor).data)
    digest.update(adapters_of(inner).encode())
    return digest.hexdigest()


def adapters_of(model: nn.Module) -> str:
    """The PEFT adapters that act in a model, with their places and scales; empty without adapters."""
    parts = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    return "".join(
        f"{name} {[getattr(module, part, None) for part in parts]}\n"
        for name, module in transformers_model(model).named_modules()
        if hasattr(module, "_disable_adapters")
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A SHA-256 of what turns texts and chats into ids: vocabulary, rules, special tokens, chat template and options.

    Args:
        tokenizer: a tokenizer, a processor or a `ChatTokenizer`.
    """
    chat = ChatTokenizer.of(tokenizer)
    words = chat.tokenizer
    backend = getattr(words, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules |= {"truncation": None, "padding": None}  # these are the last call's
    else:
        get_vocab = getattr(words, "get_vocab", dict)
        rules = [type(words).__name__, get_vocab(), getattr(words, "init_kwargs", None)]
    settings = [getattr(words, name, None) for name in ("chat_template", "special_tokens_map")]
    settings += [chat.processor_template, dict(chat.template_options)]
    return hashlib.sha256(json.dumps([rules, settings], sort_keys=True, default=str).encode()).hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name. Those that accelerate has offloaded are read from where it keeps them."""
    for path, module in model.named_modules():
        offloaded: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            is_offloaded = tensor.device.type == "meta" and offloaded is not None
            yield f"{path}.{name}", offloaded[name] if is_offloaded else tensor


def tensor_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The numbers of a tensor as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    try:
        found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError, TypeError):  # a quantised tensor that has no bytes of its own
        found = flat.to(torch.float32).view(torch.uint8).numpy()
    return found
