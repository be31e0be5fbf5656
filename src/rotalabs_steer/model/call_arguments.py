"""The arguments of a decoder's forward call that say something about the positions of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import PositionError
from rotalabs_steer.model.decoder import TOKEN_ARGUMENTS
from rotalabs_steer.model.generations import two_dimensional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_CACHE_NAMES = ("past_key_values", "past_key_value", "past_buckets_states", "cache_params", "state")
_PACKING_NAMES = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx")
"""Arguments that say where the sequences begin that share one row."""

_PACKED = (
    "Several sequences share one row of this call (continuous batching, or packed training data), so the first and "
    "last tokens of each cannot be told. Use the scope 'all', or pass each sequence as a row of its own."
)
FUSED_MASK = (
    "The attention mask of this call is not of shape [batch, length], so padding cannot be told from text. Pass a "
    "[batch, length] attention_mask, or use the scope 'all'."
)


@dataclass(frozen=True, eq=False)
class CallArguments:
    """The arguments of a decoder's forward call.

    Attributes:
        tokens: ids `[batch, columns]`, or embeddings `[batch, columns, hidden]`.
        rows: number of sequences; fewer than the rows of `tokens` where a sequence has several codebooks.
        mask: `[batch, length]`, or None.
        position_ids: as passed, `[batch, columns]` or, with several kinds of positions, `[kinds, batch, columns]`.
        cached: columns in the cache; None where the cache does not count them.
        unknown: why these arguments do not show positions, or None.
    """

    tokens: torch.Tensor
    rows: int
    mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    cached: int | None
    unknown: str | None


def read_arguments(
    decoder: nn.Module | None,
    kwargs: Mapping[str, Any],
    model_kwargs: Mapping[str, Any] | None,
    *,
    encoder_decoder: bool,
) -> CallArguments:
    """Reads the arguments of a decoder's call, and of the model's call around it where there is one.

    Args:
        kwargs: the decoder's arguments.
        model_kwargs: the arguments of the model around it, where the decoder is called through one.
        encoder_decoder: whether the model's `attention_mask` is that of its encoder.

    Raises:
        PositionError: the decoder was given neither ids nor embeddings.
    """
    tokens = next((kwargs[name] for name in TOKEN_ARGUMENTS if kwargs.get(name) is not None), None)
    if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
        raise PositionError(
            f"{type(decoder).__name__} was called without input_ids or inputs_embeds of shape [batch, length, ...]."
        )
    mask_name = "decoder_attention_mask" if encoder_decoder else "attention_mask"
    # The model's own mask is the user's; its decoder may be given one that the model has fused.
    given_mask = kwargs.get("attention_mask") if model_kwargs is None else model_kwargs.get(mask_name)
    mask = two_dimensional(kwargs.get("attention_mask"))
    if mask is None:
        mask = two_dimensional(given_mask)
        if mask is not None and mask.shape[1] < tokens.shape[1]:
            mask = None  # the model's mask is about other tokens, such as bytes that were gathered into patches
    both = {**(model_kwargs or {}), **kwargs}
    cached, unknown = _cached_columns(kwargs), None
    if any(both.get(name) is not None for name in _PACKING_NAMES):
        unknown = _PACKED
    elif mask is None and given_mask is not None and two_dimensional(given_mask) is None:
        unknown = FUSED_MASK
    if kwargs.get("decoder_input_ids") is not None:  # a canvas of block diffusion does not continue its cache
        mask, cached, unknown = None, 0, None
    codebooks = getattr(decoder, "num_codebooks", 1) if tokens.dim() == 2 else 1
    rows = tokens.shape[0] // codebooks  # music decoders take a row of ids for each codebook of a sequence
    return CallArguments(tokens, rows, mask, both.get("position_ids"), cached, unknown)


def _cached_columns(kwargs: Mapping[str, Any]) -> int | None:
    """Number of columns of the sequence in the cache of this call; None where the cache does not say it."""
    cache = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    if cache is None:
        return 0
    for name in ("get_seq_length", "get_start_idx"):
        try:
            length = getattr(cache, name, lambda: None)()
        except ValueError:  # transformers' way of saying that all layers are recurrent
            return None if cache.has_previous_state() else 0
        if isinstance(length, torch.Tensor) and torch.compiler.is_compiling():
            return None  # the number is on the device; reading it would break the graph, and `generate` knows it anyway
        if length is not None:
            return int(length)
    return getattr(cache, "seqlen_offset", None)
