"""Steering vectors turned a little towards what the model's own gradient asks for, at the same cost.

A mean difference says how the activations of two kinds of responses differ, which is not yet what makes the model write
one kind. The gradient of the pairs' log-odds tells that, but whoever follows it all the way learns the wording of the
given responses (docs/methods.md). So a vector is turned by a few small steps only, and only the first tokens of the
responses count.

The steps are taken in a metric in which vectors of one length cost about the same on neutral text: A = F + λI, where F
is the Fisher information of neutral text and λ the mean of its diagonal. With u = A^½ v, each step turns u by an angle
towards A^-½ ∂m/∂v and keeps its length (natural gradient, Amari 1998). F comes from few samples, so A is a multiple of
the identity and a part of low rank, and no [hidden, hidden] matrix is ever made.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import ActivationError
from rotalabs_steer.extraction.gradients import pair_gradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.tuning.first_order import NeutralCost
    from rotalabs_steer.vectors import SteeringVector

FIRST_TOKENS = 8
"""How many tokens of a response count. With 3 or 24 of them the answers changed less."""

LEAST_COSINE = 0.7
"""A refined vector stays at least this similar to the vector that it began as."""

_STEP_ANGLE = 0.2  # radians
_MOMENTUM = 0.8
_PAIRS_PER_STEP = 16


def tilt(
    model: nn.Module,
    vector: SteeringVector,
    pairs: Sequence[RenderedPair],
    cost: NeutralCost,
    budget: float,
    steps: int = 2,
) -> SteeringVector:
    """The vector turned by a few steps of 0.2 rad towards the gradients at plus and at minus its working strength.

    The same pairs in the same order always give the same vector.

    Args:
        pairs: training pairs.
        cost: the Fisher information of neutral text at the vector's layer.
        budget: the nats of KL per token that the vector is going to cost.

    Returns:
        A vector of a similar cost at the same strength. Its cosine to the given vector is at least 0.7, and
        `metadata["cosine_to_start"]`.

    Raises:
        ActivationError: the model cannot be differentiated, or a gradient is not finite.
    """
    turner = _Turner(model, vector, cost, budget)
    present, momentum = turner.start, torch.zeros_like(turner.start)
    for step in range(steps):
        batch = [pairs[(step * _PAIRS_PER_STEP + n) % len(pairs)] for n in range(min(_PAIRS_PER_STEP, len(pairs)))]
        gradient = turner.gradient(batch, [present, -present])
        if not bool(gradient.any()):  # the openings of the responses are alike, so there is nowhere to turn to
            break
        momentum = _MOMENTUM * momentum + gradient / gradient.norm()
        present = turner.turn(present, momentum, _STEP_ANGLE)
    return turner.finished(present)


class _Turner:
    """Turns one vector in the metric of its cost."""

    def __init__(self, model: nn.Module, vector: SteeringVector, cost: NeutralCost, budget: float) -> None:
        self._model, self._vector = model, vector
        scores = cost.scores[vector.layer_index].float()
        _, singular, self._sampled = torch.linalg.svd(scores / math.sqrt(len(scores)), full_matrices=False)
        self._fisher = singular.square()
        self._floor = self._fisher.sum() / scores.shape[1]
        self.start = vector.vector.float().cpu() * cost.strength_at(vector, budget)

    def gradient(
        self, pairs: Sequence[RenderedPair], at: Sequence[Float[torch.Tensor, " hidden"]]
    ) -> Float[torch.Tensor, " hidden"]:
        """A^-½ ∂m/∂v, where m are the log-odds of the responses' first tokens, averaged over pairs and places."""
        layer = self._vector.layer_index
        try:
            found = [
                pair_gradients(self._model, pairs, [layer], at={layer: place}, first_tokens=FIRST_TOKENS)
                for place in at
            ]
        except RuntimeError as error:
            raise ActivationError(
                f"The vector of layer {layer} cannot be refined, because this model cannot be differentiated: {error}"
            ) from error
        return self._power(torch.cat(found, dim=1)[0].mean(dim=0), -0.5)

    def turn(
        self, present: Float[torch.Tensor, " hidden"], towards: Float[torch.Tensor, " hidden"], angle: float
    ) -> Float[torch.Tensor, " hidden"]:
        """The present vector turned by an angle, or by less where it would end too far from the start."""
        u = self._power(present, 0.5)
        aside = towards - u * (towards @ u) / (u @ u)
        aside = aside * (u.norm() / aside.norm().clamp_min(torch.finfo(aside.dtype).tiny))
        for share in (1.0, 0.75, 0.5, 0.25):
            turned = self._power(math.cos(share * angle) * u + math.sin(share * angle) * aside, -0.5)
            if torch.cosine_similarity(turned, self.start, dim=0) >= LEAST_COSINE:
                return turned
        return present

    def finished(self, found: Float[torch.Tensor, " hidden"]) -> SteeringVector:
        """The vector in the scale of the given one, so that it costs about the same at the same strength."""
        vector, cosine = self._vector, float(torch.cosine_similarity(found, self.start, dim=0))
        return dataclasses.replace(
            vector,
            vector=found * (vector.norm / self.start.norm()),
            metadata={**vector.metadata, "cosine_to_start": cosine},
        )

    def _power(self, vector: Float[torch.Tensor, " hidden"], exponent: float) -> Float[torch.Tensor, " hidden"]:
        """A to the power of an exponent, times a vector."""
        # A is λ outside the sampled directions; within them the Fisher information is added to it.
        more = (self._fisher + self._floor).pow(exponent) - self._floor.pow(exponent)
        sampled = self._sampled
        powered: torch.Tensor = self._floor.pow(exponent) * vector + sampled.T @ (more * (sampled @ vector))
        return powered
