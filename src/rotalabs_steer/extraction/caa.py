"""Contrastive Activation Addition: the vector is the mean difference of activations.

    v = mean over pairs of a(positive) − mean over pairs of a(negative)

with a(text) the activation of a text at a layer (Rimsky et al. 2024, arXiv:2312.06681).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.extraction.methods import DEFAULT_METHOD

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.datasets.loading import PairSource
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet


def extract_caa_vector(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: PairSource,
    layer_idx: int,
    token_position: Readout | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
    *,
    method: str = DEFAULT_METHOD,
    component: str = "residual",
    truncate: bool = False,
    neutral_texts: Sequence[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> SteeringVector:
    """The steering vector of one layer; see `extract_caa_vectors`."""
    vectors = extract_vectors(
        model,
        tokenizer,
        contrast_pairs,
        [layer_idx],
        method=method,
        token_position=token_position,
        component=component,
        batch_size=batch_size,
        truncate=truncate,
        neutral_texts=neutral_texts,
        resume=resume,
        template_options=template_options,
        show_progress=show_progress,
    )
    return vectors[layer_idx]


def extract_caa_vectors(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: PairSource,
    layer_indices: Iterable[int] | None = None,
    token_position: Readout | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
    *,
    method: str = DEFAULT_METHOD,
    component: str = "residual",
    truncate: bool = False,
    neutral_texts: Sequence[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> SteeringVectorSet:
    """Steering vectors of several layers from one pass over the pairs.

    It is `extract_vectors` with the positional arguments of rotalabs-steer 1.2; see `read_statistics` for the arguments
    and errors.

    Returns:
        Vectors `[hidden]` in fp32. Each vector's metadata has `num_pairs`, `token_position`, `pos_mean_norm`,
        `neg_mean_norm`, `vector_norm` and the model's `fingerprint`.

    Raises:
        VectorError: the sides do not differ at a layer.
    """
    return extract_vectors(
        model,
        tokenizer,
        contrast_pairs,
        layer_indices,
        method=method,
        token_position=token_position,
        component=component,
        batch_size=batch_size,
        truncate=truncate,
        neutral_texts=neutral_texts,
        resume=resume,
        template_options=template_options,
        show_progress=show_progress,
    )
