"""What steering would do at every layer, to first order: which layers are worth measuring, and near what strength.

At strength s a vector v changes the mean log-odds of contrast pairs by about s gᵀv and costs about ½ s² vᵀFv nats of KL
per token on neutral text, with g and F from one backward pass over each; no steered forward pass is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.datasets.pairs import ContrastPairDataset, as_dataset
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.extraction.extract import extract_vectors
from rotalabs_steer.extraction.gradients import fisher_scores, pair_gradients
from rotalabs_steer.extraction.methods import DEFAULT_METHOD
from rotalabs_steer.extraction.pair_texts import check_scorable, side_name, sides_of
from rotalabs_steer.model.decoder import check_layer_indices, decoder_layers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch
    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPair
    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.extraction.readout import Readout
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet


@dataclass(frozen=True, eq=False)
class NeutralCost:
    """The Fisher information of neutral text at some layers of a model: what an addition there costs.

    Attributes:
        scores: by layer, `[scores, hidden]`; F is the mean of s sᵀ.
    """

    scores: Mapping[int, Float[torch.Tensor, "scores hidden"]]

    @classmethod
    def measure(cls, model: nn.Module, tokenizer: Any, layers: Sequence[int]) -> NeutralCost:
        """From the neutral passages of the package. Serves every behaviour of this model."""
        texts = [ChatTokenizer.of(tokenizer).ids(text, special=True) for text in neutral_passages()]
        return cls(dict(zip(layers, fisher_scores(model, texts, layers), strict=True)))

    def curvature(self, vector: SteeringVector) -> float:
        """vᵀFv."""
        return float((self.scores[vector.layer_index] @ vector.vector).square().mean())

    def strength_at(self, vector: SteeringVector, budget: float) -> float:
        """The strength whose cost is about `budget` nats of KL per token: √(2 budget / vᵀFv)."""
        return math.sqrt(2 * budget / max(self.curvature(vector), 1e-30))


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """Gain and cost of additions at some layers, for one behaviour.

    Attributes:
        gradients: by layer, `[hidden]`: of the pairs' mean log-odds with respect to an addition.
    """

    gradients: Mapping[int, Float[torch.Tensor, " hidden"]]
    cost: NeutralCost

    @classmethod
    def measure(
        cls,
        model: nn.Module,
        pairs: Sequence[RenderedPair],
        layers: Sequence[int],
        cost: NeutralCost,
        *,
        show_progress: bool = False,
    ) -> FirstOrder:
        """From pairs that made none of the vectors to be scored: else the score rewards wording that both share."""
        gradients = pair_gradients(model, pairs, layers, show_progress=show_progress).mean(dim=1)
        return cls(dict(zip(layers, gradients, strict=True)), cost)

    def score(self, vector: SteeringVector) -> float:
        """gᵀv / √(vᵀFv): the change of log-odds, in nats per token, at the strength that costs ½ nat of KL."""
        gain = float(self.gradients[vector.layer_index] @ vector.vector)
        return gain / math.sqrt(max(self.cost.curvature(vector), 1e-30))

    def best(self, vectors: SteeringVectorSet) -> SteeringVector:
        """The vector with the highest score."""
        return max(vectors, key=self.score)

    def scores(self, vectors: SteeringVectorSet) -> dict[int, float]:
        """The score of each layer's vector."""
        return {vector.layer_index: self.score(vector) for vector in vectors}


def score_layers(
    model: nn.Module,
    tokenizer: Any,
    contrast_pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]],
    layer_indices: Iterable[int] | None = None,
    *,
    method: str = DEFAULT_METHOD,
    token_position: Readout | None = None,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> dict[int, float]:
    """The first-order score of each layer, from one set of pairs.

    Cross-fitted: the pairs are halved, each half's vectors are scored by the other's gradients, and the two scores
    averaged, so that nothing is judged on the pairs it was made from.

    Raises:
        DatasetError: there are fewer than four pairs, or a side has no response; the model has not run.
    """
    dataset = as_dataset(contrast_pairs)
    if len(dataset) < 4:
        raise DatasetError(f"Scoring layers halves the pairs, so it needs at least four; there are {len(dataset)}.")
    layers = check_layer_indices(model, range(len(decoder_layers(model))) if layer_indices is None else layer_indices)
    chat = ChatTokenizer.of(tokenizer, template_options)
    all_rendered = [render_pair(chat, pair, place=f"pair {number}") for number, pair in enumerate(dataset)]
    check_scorable(sides_of(all_rendered), side_name)
    halves = [(ContrastPairDataset(dataset.behavior, dataset[start::2]), all_rendered[start::2]) for start in (0, 1)]
    cost = NeutralCost.measure(model, chat, layers)
    totals = dict.fromkeys(layers, 0.0)
    for (made_from, _), (_, judged_by) in (halves, halves[::-1]):
        vectors = extract_vectors(
            model,
            chat,
            made_from,
            layers,
            method=method,
            token_position=token_position,
            show_progress=show_progress,
        )
        first_order = FirstOrder.measure(model, judged_by, layers, cost, show_progress=show_progress)
        for layer, score in first_order.scores(vectors).items():
            totals[layer] += score / 2
    return totals
