"""Contrastive Activation Addition: the vector is the mean difference of activations.

    v = mean over pairs of a(positive) − mean over pairs of a(negative)

with a(text) the activation of a text at a layer (Rimsky et al. 2024, arXiv:2312.06681).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset, as_dataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.decoder import (
    check_layer_indices,
    decoder_layers,
    model_fingerprint,
    model_name,
    text_config,
    transformers_model,
)
from rotalabs_steer.errors import VectorError
from rotalabs_steer.extraction.forward_pass import read_activations
from rotalabs_steer.extraction.readout import check_readout, default_readout, token_weights
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn


def extract_caa_vector(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_idx: int,
    token_position: str | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> SteeringVector:
    """The steering vector of one layer; see `extract_caa_vectors`."""
    return extract_caa_vectors(
        model, tokenizer, contrast_pairs, [layer_idx], token_position, batch_size, show_progress
    )[layer_idx]


def extract_caa_vectors(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_indices: Sequence[int] | None = None,
    token_position: str | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
) -> SteeringVectorSet:
    """Steering vectors of several layers from one pass over the pairs.

    Args:
        contrast_pairs: a dataset, or a list of pairs or of dicts with "positive" and "negative".
        layer_indices: 0-based decoder layers; None for all of them.
        token_position: "last", "first", "mean" (over all tokens) or "response" (mean over the response). None for
            "response" where a pair has a prompt and "last" where it has none.
        batch_size: most texts a batch; None for 500 to 1,000 tokens.

    Returns:
        Vectors `[hidden]` in fp32. Each vector's metadata has `num_pairs`, `token_position`, `pos_mean_norm`,
        `neg_mean_norm`, `vector_norm` and the model's `fingerprint`.

    Raises:
        DatasetError, ChatTemplateError, LayerError, OptionError: the input cannot be used; the model has not run.
        ActivationError: an activation is not finite.
        VectorError: the sides do not differ at a layer.
    """
    dataset = as_dataset(contrast_pairs)
    if layer_indices is None:
        layer_indices = range(len(decoder_layers(model)))
    layers = check_layer_indices(model, layer_indices)
    if token_position is not None:
        check_readout(token_position)
    max_length = getattr(text_config(transformers_model(model)), "max_position_embeddings", None)
    rendered = [
        render_pair(tokenizer, pair, place=f"pair {number}", max_length=max_length)
        for number, pair in enumerate(dataset)
    ]
    readouts = [token_position or default_readout(has_prompt=pair.prompt is not None) for pair in dataset]
    texts = [side for pair in rendered for side in (pair.positive, pair.negative)]
    weights = [token_weights(side, readout) for side, readout in zip(texts, _twice(readouts), strict=True)]

    sums = {layer: torch.zeros(2, 0) for layer in layers}  # one row a side

    def receive(layer: int, indices: list[int], pooled: torch.Tensor) -> None:
        sides = torch.tensor(indices, device=pooled.device) % 2
        by_side = torch.stack([pooled[sides == side].sum(dim=0) for side in (0, 1)]).to("cpu", torch.float64)
        sums[layer] = by_side if sums[layer].numel() == 0 else sums[layer] + by_side

    read_activations(model, texts, weights, layers, receive, batch_size=batch_size, show_progress=show_progress)
    about = {
        "num_pairs": len(dataset),
        "token_position": "/".join(sorted(set(readouts))),
        "fingerprint": model_fingerprint(model),
    }
    vectors = [
        _mean_difference(dataset.behavior, layer, sums[layer] / len(dataset), model_name(model), about)
        for layer in layers
    ]
    return SteeringVectorSet(dataset.behavior, vectors)


def _mean_difference(
    behavior: str, layer: int, means: torch.Tensor, name: str, about: Mapping[str, Any]
) -> SteeringVector:
    positive, negative = means
    vector = (positive - negative).float()
    if not bool(vector.any()):
        raise VectorError(
            f"Positive and negative texts have the same mean at layer {layer}: there is nothing to steer by."
        )
    norms = {"pos_mean_norm": float(positive.norm()), "neg_mean_norm": float(negative.norm())}
    return SteeringVector(
        behavior, layer, vector, name, metadata={**about, **norms, "vector_norm": float(vector.norm())}
    )


def _twice(items: Iterable[str]) -> list[str]:
    return [item for item in items for _ in range(2)]
