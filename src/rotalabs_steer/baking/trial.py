"""Builds a changed model, runs it on a few tokens and compares it with the steered one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from rotalabs_steer.errors import ArchitectureError
from rotalabs_steer.model.decoder import text_config
from rotalabs_steer.model.inference import probing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig, PreTrainedModel

_ROWS, _COLUMNS = 2, 12


def state_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A copy of the weights on the CPU, by name. A weight that has several names is copied for each of them."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def build(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    state: Mapping[str, torch.Tensor],
    like: PreTrainedModel,
) -> PreTrainedModel:
    """A model with these weights, and with the generation settings, dtype and device of `like`."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        built = model_class.from_pretrained(None, config=config, state_dict=dict(state), dtype=like.dtype)
    finally:
        if shown:
            logging.enable_progress_bar()
    if like.can_generate():
        built.generation_config = copy.deepcopy(like.generation_config)
    return built.to(like.device).eval()


def probe_tokens(model: PreTrainedModel) -> torch.Tensor:
    """Token ids of shape `[2, 12]`, which are always the same."""
    generator = torch.Generator().manual_seed(0)
    size = int(text_config(model).vocab_size)
    return torch.randint(0, size, (_ROWS, _COLUMNS), generator=generator).to(model.device)


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of these tokens in fp32.

    Raises:
        ArchitectureError: the model does not run on a batch of token ids alone.
    """
    try:
        with probing(model):
            output: Any = model(input_ids=tokens, use_cache=False)
    except Exception as error:  # the code of an architecture may raise any error
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ArchitectureError(
            f"{type(model).__name__} does not run on token ids of shape {list(tokens.shape)} alone, which is how a "
            f"baked model is compared with the steered one: {reason}. Steer it with ActivationInjector instead. (Music "
            "decoders want a row for each codebook, drafting models the states of another model.)"
        ) from error
    return output.logits.float().cpu()  # type: ignore[no-any-return]


def tolerance(dtype: torch.dtype) -> float:
    """How much logits may differ because of the order of additions, as a fraction of the largest logit."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 0.05


def rounding(dtype: torch.dtype) -> float:
    """The possible rounding error of a few additions, as a fraction of the numbers that are added."""
    return 32 * torch.finfo(dtype).eps


def check_same(baked: torch.Tensor, steered: torch.Tensor, unsteered: torch.Tensor, model: PreTrainedModel) -> None:
    """Refuses a baked model that is not the steered one.

    Raises:
        ArchitectureError: their logits differ by more than rounding.
    """
    difference, scale = float((baked - steered).abs().max()), float(steered.abs().max())
    effect = float((steered - unsteered).abs().max())
    if difference > tolerance(model.dtype) * scale or difference > 0.5 * effect > 0:
        raise ArchitectureError(
            f"The logits of the baked {type(model).__name__} differ from those of the steered one by {difference:.3g} "
            f"(the largest is {scale:.3g}, steering changes them by {effect:.3g}). Steer with an injector instead."
        )
