"""Steering vectors as probes: how much of a behaviour each token and text shows, and how well that tells texts apart.

The score of a token is the projection of its residual stream, at the vector's layer, on the vector at norm 1; the score
of a text is the mean over its tokens. The first token of a sequence, an attention sink whose norm is a hundred times
that of the others, is left out. A difference of means read this way is among the best simple detectors of a concept
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
        auroc: probability that a positive text scores above a negative one of any pair, with its score interval:
            0.5 is chance.
        paired: share of pairs whose positive text scores above its own negative one, with its Wilson interval.
        positive_scores, negative_scores: of each pair.
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
    """Per-token and per-text scores of texts, for any number of vectors in one pass.

    Steering that is attached acts here too: it moves the projections at its layer and behind it.

    Args:
        vectors: one, several, or a set.
        prompts: where the texts are answers, what each answers; the scores are those of the answers' tokens. Where the
            chat template opens a block of thoughts, a text is read as what the model wrote into it.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        DatasetError: a text has no token that counts, or is longer than the model's context.
        OptionError: `texts` is one string, there are not as many prompts, or the tokenizer cannot say where its tokens
            are.
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
    rendered, described = [], []
    asked: Sequence[Prompt | None] = [None] * len(texts) if prompts is None else prompts
    for text, prompt in zip(texts, asked, strict=True):
        start = () if prompt is None else chat.prompt(prompt)
        ids, offsets = chat.with_offsets(text, special=prompt is None)
        rendered.append(RenderedText((*start, *ids), len(start)))
        described.append(_described(chat.tokenizer, text, ids, offsets))
    projections = _project(model, rendered, vectors, "text {}".format, show_progress=show_progress)
    return [
        ProjectedText(
            text,
            *tokens,
            scores[:, given.response_start :],
            scores[:, _counting(given)].mean(dim=1),
            int(given.response_start == 0),
        )
        for text, tokens, given, scores in zip(texts, described, rendered, projections, strict=True)
    ]


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
    """How well each vector tells the sides of pairs apart. Give pairs that made none of the vectors.

    A side is read like the texts of `project`: the response where there is a prompt, the token after which the model
    answers where the sides differ in their prompt only.

    Raises:
        DatasetError, ChatTemplateError: a pair cannot be read.
        VectorError, LayerError, ModelMismatchError: a vector does not fit the model.
    """
    vectors = _as_list(vectors)
    longest = _context(model)
    chat = ChatTokenizer.of(tokenizer, template_options)
    pairs = [
        render_pair(chat, pair, place=f"pair {number}", max_length=longest)
        for number, pair in enumerate(as_dataset(contrast_pairs))
    ]
    sides = [side for pair in pairs for side in (pair.positive, pair.negative)]

    def name(index: int) -> str:
        return f"the {('positive', 'negative')[index % 2]} text of pair {index // 2}"

    projections = _project(model, sides, vectors, name, show_progress=show_progress)
    scores = torch.stack([found[:, _counting(s)].mean(dim=1) for s, found in zip(sides, projections, strict=True)], 1)
    found = []
    for vector, row in zip(vectors, scores, strict=True):
        positive, negative = row[0::2].tolist(), row[1::2].tolist()
        above = sum(high > low for high, low in zip(positive, negative, strict=True))
        found.append(
            Detection(
                vector.behavior, vector.layer_index, auroc(positive, negative, paired=True),
                wilson_interval(above, len(pairs)), tuple(positive), tuple(negative),
            )
        )  # fmt: skip
    return found


def auroc(positive: Sequence[float], negative: Sequence[float], *, paired: bool = False) -> Estimate:
    """The probability that a positive score exceeds a negative one, ties counting half, with its score interval.

    The interval is Newcombe's (2006, method 5), which stays inside 0 to 1 and has a width also where the sides do not
    overlap. Pairs make it narrower as far as they show that their sides are alike. Fewer than eight scores of a side
    get no interval.

    Args:
        paired: scores come in pairs; else each side was drawn on its own.

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
        spread = 1 + ((len(high) + len(low)) / 2 - 1) * ((1 - rate) / (2 - rate) + rate / (1 + rate))
        variance = narrowing * rate * (1 - rate) * spread / (len(high) * len(low))
        return (rate - found) ** 2 > Z**2 * variance

    return Estimate(found, _edge(outside, 0.0, found), _edge(outside, 1.0, found))


def _narrowing(wins: NDArray[np.float64]) -> float:
    """The variance of a paired AUROC over that of an unpaired one (DeLong et al. 1988), drawn to 1 for few pairs."""
    above, below = wins.mean(axis=1), wins.mean(axis=0)
    apart = float(above.var() + below.var())
    ratio = 1 + 2 * float(np.mean((above - above.mean()) * (below - below.mean()))) / apart if apart > 0 else 1.0
    return (len(wins) * max(ratio, 0.0) + 4) / (len(wins) + 4)


def _edge(outside: Callable[[float], bool], end: float, inside: float) -> float:
    """Where an interval ends, between a rate inside it and an end of 0 to 1, by bisection."""
    for _ in range(50):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return end if end in (0.0, 1.0) else inside


def _project(
    model: nn.Module,
    texts: Sequence[RenderedText],
    vectors: SteeringVector | Iterable[SteeringVector],
    name: Any,
    *,
    show_progress: bool,
) -> list[Float[torch.Tensor, "vectors tokens"]]:
    vectors = _as_list(vectors)
    check_vectors(model, vectors)
    longest = _context(model)
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
    by_layer: dict[int, list[int]] = {}
    for number, vector in enumerate(vectors):
        by_layer.setdefault(vector.layer_index, []).append(number)
    units = [vector.normalize().vector.float() for vector in vectors]
    directions = {layer: torch.stack([units[number] for number in numbers]) for layer, numbers in by_layer.items()}
    ids = [text.ids for text in texts]
    found = read_projections(model, ids, plan_batches(model, ids), directions, name=name, show_progress=show_progress)
    given_order = torch.tensor([number for numbers in by_layer.values() for number in numbers]).argsort()
    return [torch.cat(by_text, dim=1).T[given_order] for by_text in zip(*found.values(), strict=True)]


def _counting(text: RenderedText) -> slice | None:
    """The tokens whose mean is the text's score: the response, without the first token of a sequence."""
    start, end = max(text.response_start, 1), len(text.ids)
    if start < end:
        return slice(start, end)
    return slice(end - 1, end) if text.response_start == end > 0 else None


def _described(
    tokenizer: Any, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Tokens as they read, and where they are."""
    tokens = [
        text[low:high] if high > low else str(tokenizer.convert_ids_to_tokens(token))
        for token, (low, high) in zip(ids, offsets, strict=True)
    ]
    return tuple(tokens), tuple((low, high) for low, high in offsets)


def _as_list(vectors: SteeringVector | Iterable[SteeringVector]) -> list[SteeringVector]:
    found = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
    if not found or not all(isinstance(vector, SteeringVector) for vector in found):
        raise VectorError("There is nothing to project on: give SteeringVectors, or a SteeringVectorSet.")
    return found


def _context(model: nn.Module) -> int | None:
    return getattr(text_config(transformers_model(model)), "max_position_embeddings", None)
