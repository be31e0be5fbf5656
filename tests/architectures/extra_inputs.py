"""What some models want besides text: images, sounds, what an encoder returned. All random, the same for every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODED = 6


@dataclass
class Encoded(BaseModelOutput):
    """An encoder's output with what some decoders look for in it."""

    attention_mask: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


def extra_inputs(model: torch.nn.Module, ids: torch.Tensor, width: int) -> dict[str, Any]:
    """Arguments of a forward call besides the tokens, for as many rows as `ids` has."""
    rows = len(ids)
    if model.config.model_type in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[model.config.model_type](model.config, ids)
    if model.config.is_encoder_decoder:
        return {"encoder_outputs": Encoded(_random(rows, ENCODED, width))}
    return {}


def _random(rows: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(2)).expand(rows, *shape)


def _image(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    size = config.vision_config.image_size
    return {"pixel_values": _random(len(ids), 3, size, size)}


def _image_and_question(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    return _image(config, ids) | {"qformer_input_ids": torch.full((len(ids), 3), 7)}


def _video_and_question(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    inputs = _image_and_question(config, ids)
    return inputs | {"pixel_values": inputs["pixel_values"].unsqueeze(1)}


def _encoded_image(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {
        "image_encoder_embeddings": _random(len(ids), 1, 4, config.vision_config.embed_dim),
        "image_attention_mask": torch.ones(*ids.shape, 1, dtype=torch.long),
    }


def _no_image_embeddings(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"image_embeds": torch.zeros(len(ids), 0, 32), "image_embeds_position_mask": torch.zeros_like(ids)}


def _encoded_page(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    mask = torch.ones(len(ids), ENCODED)
    return {"encoder_outputs": Encoded(_random(len(ids), ENCODED, config.d_model), attention_mask=mask)}


def _canvas(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    return {"input_ids": torch.full((len(ids), ENCODED), 7)}


def _robot(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    size = config.vlm_config.vision_config.image_size
    return {
        "state": _random(len(ids), config.max_state_dim),
        "noise": _random(len(ids), config.chunk_size, config.max_action_dim),
        "timestep": torch.full((len(ids),), 0.5),
        "pixel_values": _random(len(ids), 1, 3, size, size),
        "pixel_attention_mask": torch.ones(len(ids), 1, dtype=torch.bool),
    }


def _sound(config: Any, ids: torch.Tensor) -> dict[str, Any]:
    columns = ids.shape[1] * config.downsample_factor
    return {"encoder_inputs_embeds": _random(len(ids), columns, config.audio_config.hidden_size)}


_BY_MODEL_TYPE: dict[str, Callable[[Any, torch.Tensor], dict[str, Any]]] = {
    "blip": _image,
    "blip-2": _image,
    "diffusion_gemma": _canvas,
    "idefics": _encoded_image,
    "instructblip": _image_and_question,
    "instructblipvideo": _video_and_question,
    "kosmos-2": _no_image_embeddings,
    "pi0": _robot,
    "udop": _encoded_page,
    "voxtral_realtime": _sound,
}
