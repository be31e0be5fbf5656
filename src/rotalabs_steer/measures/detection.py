"""Steering vectors as probes: how much of a behaviour each token and text shows, and how well that tells texts apart.

The score of a token is the projection of its residual stream, at the vector's layer, on the vector at norm 1. The score
of a text is the mean over its tokens, without the first token of a sequence: that is an attention sink whose norm is a
hundred times that of the others. A difference of means read this way is among the best simple detectors of a concept
(AxBench, Wu et al. 2025, arXiv:2501.17148).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.pairs import as_dataset
from rotalabs_steer.datasets.rendering import RenderedText, render_pair
from rotalabs_steer.errors import DatasetError, OptionError, VectorError
from rotalabs_steer.extraction.forward_pass import read_projections
from rotalabs_steer.extraction.pair_texts import side_name, sides_of
from rotalabs_steer.intervals import FEWEST_VALUES, Estimate, Z, wilson_interval
from rotalabs_steer.measures.projected_text import ProjectedText
from rotalabs_steer.model.batching import plan_batches
from rotalabs_steer.model.decoder import text_config, transformers_model
from rotalabs_steer.steering.plain_model import on_plain_model
from rotalabs_steer.steering.vector_checks import check_vectors
from rotalabs_steer.vectors import SteeringVector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from jaxtyping import Float
    from numpy.typing import NDArray
    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset


@dataclass(frozen=True)
class Detection:
    """How well one vector tells the sides of pairs apart.

    Attributes:
        auroc: the probability that a positive text scores above a negative one of any pair, with its score interval.
            Chance is 0.5.
        paired: the share of pairs whose positive text scores above its own negative one, with its Wilson interval.
        positive_scores, negative_scores: the scores of both sides of each pair.
    """

    behavior: str
    layer_index: int
    auroc: Estimate
    paired: Estimate
    positive_scores: tuple[float, ...]
    negative_scores: tuple[float, ...]


def project(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    vectors: SteeringVector | Iterable[SteeringVector],
    *,
    prompts: Sequence[Prompt] | None = None,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> list[ProjectedText]:
    """Scores the tokens of texts, and the texts, on any number of vectors in one pass.

    Attached steering acts here too: it moves the projections at its layer and the layers after it.

    Args:
        vectors: one vector, several, or a set.
        prompts: the prompt that each text answers, where the texts are answers. Only the answers' tokens are scored.
            Where the chat template opens a block of thoughts, a text is read as what the model wrote into it.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.

    Raises:
        DatasetError: a text has no token that counts, or is longer than the model's context.
        OptionError: `texts` is one string, there are not as many prompts as texts, or the tokenizer is not a fast one,
            which knows where its tokens are in a text.
        VectorError, LayerError, ModelMismatchError: a vector does not fit the model.
        ActivationError: an activation is not finite.
    """
    texts = list_of("texts", texts)
    prompts = None if prompts is None else list_of("prompts", prompts)
    if prompts is not None and len(prompts) != len(texts):
        raise OptionError(f"{len(prompts)} prompts for {len(texts)} texts: give one for each text, or none.")
    chat = ChatTokenizer.of(tokenizer, template_options)
    if not getattr(chat.tokenizer, "is_fast", False):
        raise OptionError("Projecting needs to know where tokens are in a text: load the tokenizer with use_fast=True.")
    asked: Sequence[Prompt | None] = [None] * len(texts) if prompts is None else prompts
    rendered, where = [], []
    for text, prompt in zip(texts, asked, strict=True):
        start = () if prompt is None else chat.prompt(prompt)
        ids, offsets = chat.with_offsets(text, special=prompt is None)
        rendered.append(RenderedText((*start, *ids), len(start)))
        where.append(offsets)
    projections = _project(model, rendered, _as_list(vectors), "text {}".format, show_progress=show_progress)
    found = []
    for text, given, offsets, scores in zip(texts, rendered, where, projections, strict=True):
        # A special token has no characters in the text, so it goes by its name.
        tokens = (
            text[low:high] or str(chat.tokenizer.convert_ids_to_tokens(token))
            for token, (low, high) in zip(given.ids[given.response_start :], offsets, strict=True)
        )
        found.append(
            ProjectedText(
                text,
                tuple(tokens),
                tuple(offsets),
                scores[:, given.response_start :],
                scores[:, _counting(given)].mean(dim=1),
                start=int(given.response_start == 0),
            )
        )
    return found


@on_plain_model
def detection_auroc(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    vectors: SteeringVector | Iterable[SteeringVector],
    *,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = False,
) -> list[Detection]:
    """Measures how well each vector tells the sides of pairs apart. Give pairs that made none of the vectors.

    A side is read like the texts of `project`: the response if there is a prompt, or the token after which the model
    answers if the sides differ in their prompts only.

    Raises:
        DatasetError, ChatTemplateError: a pair cannot be read.
        VectorError, LayerError, ModelMismatchError: a vector does not fit the model.
    """
    vectors = _as_list(vectors)
    chat = ChatTokenizer.of(tokenizer, template_options)
    dataset = as_dataset(contrast_pairs)
    pairs = [render_pair(chat, pair, place=f"pair {number}") for number, pair in enumerate(dataset)]
    sides = sides_of(pairs)
    projections = _project(model, sides, vectors, side_name, show_progress=show_progress)
    scores = torch.stack([found[:, _counting(s)].mean(dim=1) for s, found in zip(sides, projections, strict=True)], 1)
    found = []
    for vector, row in zip(vectors, scores, strict=True):
        positive, negative = tuple(row[0::2].tolist()), tuple(row[1::2].tolist())
        area = auroc(positive, negative, paired=True)
        paired = wilson_interval(int((row[0::2] > row[1::2]).sum()), len(pairs))
        found.append(Detection(vector.behavior, vector.layer_index, area, paired, positive, negative))
    return found


def auroc(positive: Sequence[float], negative: Sequence[float], *, paired: bool = False) -> Estimate:
    """The probability that a positive score exceeds a negative one, with its score interval. A tie counts half.

    The interval is Newcombe's (2006, method 5), which stays inside 0 to 1 and has a width even if the sides do not
    overlap. Paired scores make it narrower, the more so the more alike both sides of a pair are. Fewer than eight
    scores of a side get no interval.

    Args:
        paired: scores at the same index belong to one pair. If False, each side was drawn on its own.

    Raises:
        OptionError: a side has no scores, paired sides have different numbers, or a score is not a finite number.
    """
    if len(positive) == 0 or len(negative) == 0 or (paired and len(positive) != len(negative)):
        raise OptionError(
            f"An AUROC needs scores of both sides{', as many of each' if paired else ''}; "
            f"got {len(positive)} and {len(negative)}."
        )
    high, low = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise OptionError("An AUROC needs finite scores; some are NaN or infinite. Find out where they come from.")
    difference = np.subtract.outer(high, low)
    wins = (difference > 0) + 0.5 * (difference == 0)
    found = float(wins.mean())
    if min(len(high), len(low)) < FEWEST_VALUES:
        return Estimate(found, None, None)
    narrowing = _narrowing(wins) if paired else 1.0

    def outside(rate: float) -> bool:
        # The variance of Hanley and McNeil (1982), with the number of each side replaced by the mean of both numbers.
        spread = 1 + ((len(high) + len(low)) / 2 - 1) * ((1 - rate) / (2 - rate) + rate / (1 + rate))
        variance = narrowing * rate * (1 - rate) * spread / (len(high) * len(low))
        return (rate - found) ** 2 > Z**2 * variance

    return Estimate(found, _edge(outside, 0.0, found), _edge(outside, 1.0, found))


def _narrowing(wins: NDArray[np.float64]) -> float:
    """The variance of a paired AUROC divided by that of an unpaired one (DeLong et al. 1988).

    It is drawn towards 1 as if by four more pairs, because few pairs show it inexactly.
    """
    above, below = wins.mean(axis=1), wins.mean(axis=0)
    apart = float(above.var() + below.var())
    ratio = 1 + 2 * float(np.mean((above - above.mean()) * (below - below.mean()))) / apart if apart > 0 else 1.0
    return (len(wins) * max(ratio, 0.0) + 4) / (len(wins) + 4)


def _edge(outside: Callable[[float], bool], end: float, inside: float) -> float:
    """The end of an interval between a rate inside it and 0 or 1, by bisection."""
    for _ in range(50):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return end if end in (0.0, 1.0) else inside


def _project(
    model: nn.Module,
    texts: Sequence[RenderedText],
    vectors: Sequence[SteeringVector],
    name: Callable[[int], str],
    *,
    show_progress: bool,
) -> list[Float[torch.Tensor, "vectors tokens"]]:
    """The projections of each text's tokens on the vectors at norm 1."""
    check_vectors(model, vectors)
    if not texts:
        return []
    longest = getattr(text_config(transformers_model(model)), "max_position_embeddings", None)
    for index, text in enumerate(texts):
        if not _counting(text):
            raise DatasetError(
                f"{name(index).capitalize()} has {len(text.ids)} token(s), none of which counts: the first of a "
                "sequence is left out. Give a longer text, or the prompt that it answers."
            )
        if longest is not None and len(text.ids) > longest:
            raise DatasetError(
                f"{name(index).capitalize()} has {len(text.ids)} tokens; the model's context holds {longest}. Cut it."
            )
    by_layer: dict[int, list[torch.Tensor]] = {}
    columns = []  # the layer of each vector, and its number among the vectors of that layer
    for vector in vectors:
        directions = by_layer.setdefault(vector.layer_index, [])
        columns.append((vector.layer_index, len(directions)))
        directions.append(vector.normalize().vector.float())
    ids = [text.ids for text in texts]
    stacked = {layer: torch.stack(directions) for layer, directions in by_layer.items()}
    found = read_projections(model, ids, plan_batches(model, ids), stacked, name=name, show_progress=show_progress)
    return [torch.stack([found[layer][text][:, column] for layer, column in columns]) for text in range(len(texts))]


def _counting(text: RenderedText) -> slice | None:
    """The tokens whose mean is the text's score: the response, without the first token of a sequence.

    If there is a prompt but no response, it is the token after which the model answers. None if there is no such token.
    """
    start, end = max(text.response_start, 1), len(text.ids)
    if start < end:
        return slice(start, end)
    return slice(end - 1, end) if text.response_start == end > 0 else None


def _as_list(vectors: SteeringVector | Iterable[SteeringVector]) -> list[SteeringVector]:
    found = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    if not found or not all(isinstance(vector, SteeringVector) for vector in found):
        raise VectorError("There is nothing to project on: give SteeringVectors, or a SteeringVectorSet.")
    return found
