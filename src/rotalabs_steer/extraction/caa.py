"""Contrastive Activation Addition: the vector is the mean difference of activations.

    v = mean over pairs of a(positive) − mean over pairs of a(negative)

with a(text) the activation of a text at a layer (Rimsky et al. 2024, arXiv:2312.06681).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.extraction.extract import extract_vectors

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet


def extract_caa_vector(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_idx: int,
    token_position: Readout | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
    **options: Any,
) -> SteeringVector:
    """The steering vector of one layer; see `extract_caa_vectors`."""
    vectors = extract_caa_vectors(
        model, tokenizer, contrast_pairs, [layer_idx], token_position, batch_size, show_progress, **options
    )
    return vectors[layer_idx]


def extract_caa_vectors(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_indices: Iterable[int] | None = None,
    token_position: Readout | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
    **options: Any,
) -> SteeringVectorSet:
    """Steering vectors of several layers from one pass over the pairs.

    Args:
        contrast_pairs: a dataset; a list of pairs or of dicts with "positive" and "negative"; a file of pairs; or the
            name of a built-in behaviour.
        layer_indices: 0-based decoder layers; None for all of them.
        token_position: "last", "first", "mean" (over all tokens), "response" (mean over the response) or another of
            `read_statistics`. None for "response" where a pair has a prompt and "last" where it has none.
        batch_size: most texts a batch; None for about 500 tokens.
        options: of `extract_vectors`: `method`, `component`, `truncate`, `neutral_texts`, `resume`,
            `template_options`.

    Returns:
        Vectors `[hidden]` in fp32. Each vector's metadata has `num_pairs`, `token_position`, `pos_mean_norm`,
        `neg_mean_norm`, `vector_norm` and the model's `fingerprint`.

    Raises:
        DatasetError, ChatTemplateError, LayerError, OptionError: the input cannot be used; the model has not run.
        ActivationError: an activation is not finite.
        VectorError: the sides do not differ at a layer.
    """
    return extract_vectors(
        model,
        tokenizer,
        contrast_pairs,
        layer_indices,
        token_position=token_position,
        batch_size=batch_size,
        show_progress=show_progress,
        **options,
    )
