"""What steering would do at every layer, to first order: which layers are worth measuring, and near what strength.

At strength s a vector v changes the mean log-odds of contrast pairs by about s gᵀv and costs about ½ s² vᵀFv nats of KL
per token on neutral text. One backward pass over the pairs gives the gradient g, and one over the neutral text gives
the Fisher information F. No steered forward pass is needed.
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
    from rotalabs_steer.vectors import SteeringVector


_LEAST_CURVATURE = 1e-30


@dataclass(frozen=True, eq=False)
class NeutralCost:
    """What an addition at a layer costs on neutral text: the Fisher information of the text there.

    Attributes:
        scores: for each layer, `[scores, hidden]`. F is the mean of s sᵀ over these scores s.
    """

    scores: Mapping[int, Float[torch.Tensor, "scores hidden"]]

    @classmethod
    def measure(cls, model: nn.Module, tokenizer: Any, layers: Sequence[int]) -> NeutralCost:
        """Measures the package's neutral passages. The result serves every behaviour of this model."""
        texts = [ChatTokenizer.of(tokenizer).ids(text, special=True) for text in neutral_passages()]
        return cls(dict(zip(layers, fisher_scores(model, texts, layers), strict=True)))

    def curvature(self, vector: SteeringVector) -> float:
        """vᵀFv, but never zero, so that it can divide also where the vector moves no prediction on neutral text."""
        return max(float((self.scores[vector.layer_index] @ vector.vector).square().mean()), _LEAST_CURVATURE)

    def strength_at(self, vector: SteeringVector, budget: float) -> float:
        """The strength whose cost is about `budget` nats of KL per token: √(2 budget / vᵀFv)."""
        return math.sqrt(2 * budget / self.curvature(vector))


@dataclass(frozen=True, eq=False)
class FirstOrder:
    """What an addition at a layer gains for one behaviour, and what it costs.

    Attributes:
        gradients: for each layer, `[hidden]`: the gradient of the pairs' mean log-odds with respect to an addition.
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
        """Measures pairs.

        Args:
            pairs: none that made a vector to be scored, because the score would reward wording that both share.
        """
        gradients = pair_gradients(model, pairs, layers, show_progress=show_progress).mean(dim=1)
        return cls(dict(zip(layers, gradients, strict=True)), cost)

    def score(self, vector: SteeringVector) -> float:
        """gᵀv / √(vᵀFv): the change of the log-odds, in nats per token, at the strength that costs ½ nat of KL."""
        return float(self.gradients[vector.layer_index] @ vector.vector) / math.sqrt(self.cost.curvature(vector))


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

    The scores are cross-fitted: the gradients of each half of the pairs score the vectors of the other half, and the
    two scores are averaged. So no vector is scored on the pairs that made it.

    Raises:
        DatasetError: there are fewer than four pairs, or a side has no response; the model has not run.
    """
    dataset = as_dataset(contrast_pairs)
    if len(dataset) < 4:
        raise DatasetError(f"Scoring layers halves the pairs, so it needs at least four; there are {len(dataset)}.")
    layers = check_layer_indices(model, range(len(decoder_layers(model))) if layer_indices is None else layer_indices)
    chat = ChatTokenizer.of(tokenizer, template_options)
    rendered = [render_pair(chat, pair, place=f"pair {number}") for number, pair in enumerate(dataset)]
    check_scorable(sides_of(rendered), side_name)
    cost = NeutralCost.measure(model, chat, layers)
    options: dict[str, Any] = {"method": method, "token_position": token_position, "show_progress": show_progress}
    totals = dict.fromkeys(layers, 0.0)
    for half in (0, 1):  # every second pair, so that both halves have pairs of every topic
        made_from = ContrastPairDataset(dataset.behavior, dataset[half::2])
        vectors = extract_vectors(model, chat, made_from, layers, **options)
        first_order = FirstOrder.measure(model, rendered[1 - half :: 2], layers, cost, show_progress=show_progress)
        for vector in vectors:
            totals[vector.layer_index] += first_order.score(vector) / 2
    return totals
