"""What tells a model and a tokenizer from others of the same name, so that saved work is continued with the right one.

A path or a name says too little: the weights under it are trained further, merged, quantised, or get an adapter.
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

    The generation configuration counts, since a penalty or a stop token changes what the model writes.

    Every weight is read, which takes about a second for each gigabyte.
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
    """Which adapters of PEFT's act in a model, where and how strongly; empty where there are none."""
    parts = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    return "".join(
        f"{name} {[getattr(module, part, None) for part in parts]}\n"
        for name, module in transformers_model(model).named_modules()
        if hasattr(module, "_disable_adapters")
    )


def tokenizer_digest(tokenizer: Any) -> str:
    """A SHA-256 of how a tokenizer turns texts and chats into ids: its vocabulary, special tokens and chat template.

    Args:
        tokenizer: a tokenizer, a processor or a `ChatTokenizer`, whose options and whose processor's template count.
    """
    chat = ChatTokenizer.of(tokenizer)
    words = chat.tokenizer
    backend = getattr(words, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        rules |= {"truncation": None, "padding": None}  # what the last call asked for
    else:
        get_vocab = getattr(words, "get_vocab", dict)
        rules = [type(words).__name__, get_vocab(), getattr(words, "init_kwargs", None)]
    told = [getattr(words, name, None) for name in ("chat_template", "special_tokens_map")]
    told += [chat.processor_template, dict(chat.template_options)]
    return hashlib.sha256(json.dumps([rules, told], sort_keys=True, default=str).encode()).hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and buffers by name; where accelerate has offloaded them, from where it keeps them."""
    for path, module in model.named_modules():
        offloaded: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            kept = tensor.device.type == "meta" and offloaded is not None
            yield f"{path}.{name}", offloaded[name] if kept else tensor


def tensor_bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """What a tensor holds, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    try:
        found: NDArray[np.uint8] = flat.view(torch.uint8).numpy()
    except (RuntimeError, NotImplementedError, TypeError):  # a quantised tensor that has no bytes of its own
        found = flat.to(torch.float32).view(torch.uint8).numpy()
    return found
