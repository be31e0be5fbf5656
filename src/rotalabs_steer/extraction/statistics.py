"""The numbers that methods compute directions from: sums over the pairs and a sample of them, so memory stays bounded.

No matrix of `[hidden, hidden]` is kept. At an 8B model's width one takes 134 MB in fp64, and the covariance of fewer
pairs than dimensions has no more in it than the pairs themselves.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

SAMPLES, NEUTRAL, GRADIENT, FISHER = "samples", "neutral", "gradient", "fisher"
FIELD_OF_NEED = {
    SAMPLES: "samples",
    NEUTRAL: "neutral_mean",
    GRADIENT: "gradient",
    FISHER: "fisher_scores",
}
"""What a method may need besides the means of both sides, and the field of `LayerStatistics` that has it."""

MOST_SAMPLES = 1024
"""Where there are more pairs, a method that needs samples sees this many, drawn at random with a fixed seed."""


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What is known about the pairs at one layer. A field that no method asked for is None.

    Attributes:
        num_pairs: how many pairs were read.
        positive_mean, negative_mean: `[hidden]`.
        samples: `[pairs, 2, hidden]`, positive and negative activations of at most `MOST_SAMPLES` pairs.
        neutral_mean: `[hidden]`, over neutral texts.
        gradient: `[hidden]`, of the mean log-odds of the pairs with respect to an addition at this layer.
        fisher_scores: `[scores, hidden]`; the mean of s sᵀ is the Fisher information of neutral text, per token.
    """

    layer_index: int
    num_pairs: int
    positive_mean: Float[torch.Tensor, " hidden"]
    negative_mean: Float[torch.Tensor, " hidden"]
    samples: Float[torch.Tensor, "pairs 2 hidden"] | None = None
    neutral_mean: Float[torch.Tensor, " hidden"] | None = None
    gradient: Float[torch.Tensor, " hidden"] | None = None
    fisher_scores: Float[torch.Tensor, "scores hidden"] | None = None

    @property
    def mean_difference(self) -> Float[torch.Tensor, " hidden"]:
        """positive_mean − negative_mean."""
        return self.positive_mean - self.negative_mean


class PairSums:
    """Running sums over pairs in fp64 and samples in fp32, for several places (layers and their components) at once.

    Args:
        num_pairs: number of all pairs, including those that another process adds.
        needs: what is kept besides the sums of both sides; only samples are kept here.
    """

    def __init__(self, places: int, hidden: int, num_pairs: int, needs: frozenset[str] = frozenset()) -> None:
        # The draw depends on the number of pairs only, so all processes and a resumed run keep the same pairs.
        kept = sorted(random.Random(0).sample(range(num_pairs), min(num_pairs, MOST_SAMPLES)))
        self._num_pairs = num_pairs
        self._kept = {pair: number for number, pair in enumerate(kept)}
        self.tensors = {"sums": torch.zeros(places, 2, hidden, dtype=torch.float64)}
        if SAMPLES in needs:
            self.tensors["samples"] = torch.zeros(places, len(kept), 2, hidden)

    def add(self, pairs: Sequence[int], sides: Float[torch.Tensor, "places pairs 2 hidden"]) -> None:
        """Adds the activations of some pairs, given with their numbers."""
        self.tensors["sums"] += sides.to(torch.float64).sum(dim=1)
        if "samples" in self.tensors:
            for column, pair in enumerate(pairs):
                if pair in self._kept:
                    self.tensors["samples"][:, self._kept[pair]] = sides[:, column]

    def layer(self, place: int, layer_index: int) -> LayerStatistics:
        """The statistics of one place."""
        positive_mean, negative_mean = self.tensors["sums"][place] / self._num_pairs
        samples = self.tensors["samples"][place] if "samples" in self.tensors else None
        return LayerStatistics(layer_index, self._num_pairs, positive_mean, negative_mean, samples)
