"""What a vector does at several strengths: the propensities of pairs and the cost on neutral text.

Strengths of different layers cannot be compared: the residual stream grows from layer to layer, and raw vectors with
it. So a curve's unit is the strength that spends the same coherence budget at every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import Estimate, mean_interval
from rotalabs_steer.measures.coherence import CoherenceCost  # noqa: TC001 - a record's hints are read at run time
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.steering.injection import ActivationInjector

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.measures.coherence import Calibration, CoherenceProbe
    from rotalabs_steer.vectors import SteeringVector

FRACTIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """Propensities and costs of one layer's vector, by strength.

    Attributes:
        unit: strength of the vector that spends the coherence budget.
        fractions: strengths measured, in units; −1, 0 and 1 among them.
        propensities: `[fractions, pairs]`, nats per token.
        costs: of each fraction.

    Raises:
        OptionError: −1, 0 or 1 is missing, or there is not a row and a cost for each fraction.
    """

    layer_index: int = field(metadata={"key": "layer"})
    unit: float
    fractions: tuple[float, ...]
    propensities: torch.Tensor
    costs: tuple[CoherenceCost, ...]

    def __post_init__(self) -> None:
        shape, count = list(self.propensities.shape), len(self.fractions)
        if not {-1.0, 0.0, 1.0} <= set(self.fractions) or shape[:1] != [count] or len(shape) != 2 or not shape[1]:
            raise OptionError(
                f"A curve needs propensities [fractions, pairs] at −1, 0 and 1; these are {shape} at {self.fractions}."
            )
        if len(self.costs) != count:
            raise OptionError(f"A curve needs a cost for each fraction; there are {len(self.costs)} for {count}.")

    @property
    def effects(self) -> torch.Tensor:
        """`[pairs]`: half the difference between the propensities at +1 and −1 unit."""
        return (self.at(1.0) - self.at(-1.0)) / 2

    @property
    def effect(self) -> Estimate:
        """Mean effect over pairs, nats per token."""
        return mean_interval(self.effects.tolist())

    @property
    def effect_in_sd(self) -> float | None:
        """Mean effect in standard deviations of the unsteered propensities; None where these are all the same."""
        spread = float(self.at(0.0).std(correction=0))
        return float(self.effects.mean()) / float(self.at(0.0).std()) if spread > 0 else None

    @property
    def anti_steerable(self) -> float:
        """Share of pairs that move the wrong way (Tan et al. 2024, arXiv:2407.12404)."""
        return float((self.effects < 0).float().mean())

    @property
    def steerability(self) -> Estimate:
        """Least-squares slope of the propensity against the strength in units, mean over pairs (Tan et al. 2024)."""
        strengths = torch.tensor(self.fractions)
        centred = strengths - strengths.mean()
        return mean_interval((centred @ self.propensities / centred.square().sum()).tolist())

    def changes(self) -> list[Estimate]:
        """Mean change of propensity against the unsteered model, for each fraction. At fraction 0 it is exactly 0."""
        rows = zip(self.fractions, self.propensities, strict=True)
        return [mean_interval((row - self.at(0.0)).tolist()) if at else Estimate(0.0, 0.0, 0.0) for at, row in rows]

    def at(self, fraction: float) -> torch.Tensor:
        """`[pairs]`: the propensities at a fraction that was measured."""
        return self.propensities[self.fractions.index(fraction)]


def measure_curve(
    model: nn.Module,
    pairs: Sequence[RenderedPair],
    probe: CoherenceProbe,
    vector: SteeringVector,
    calibration: Calibration,
    fractions: Sequence[float] = FRACTIONS,
    unsteered: torch.Tensor | None = None,
) -> LayerCurve:
    """Steers by fractions of a unit and measures the propensities of pairs.

    Args:
        pairs: rendered pairs that did not make the vector.
        calibration: the unit, and the costs there, which are not measured again.
        fractions: −1, 0 and 1 are among them in any case.
        unsteered: `[pairs]`, their propensities at strength 0, where they are known.
    """
    fractions = tuple(sorted({*fractions, -1.0, 0.0, 1.0}))
    propensities = {} if unsteered is None else {0.0: unsteered}
    costs = {-1.0: calibration.costs[0], 0.0: probe.unsteered, 1.0: calibration.costs[1]}
    injector = ActivationInjector(model, [vector])
    with injector:
        for fraction in fractions:
            injector.strength = fraction * calibration.strength
            if fraction not in propensities:
                propensities[fraction] = pair_propensities(model, pairs)
            if fraction not in costs:
                costs[fraction] = probe.measure()
    return LayerCurve(
        vector.layer_index,
        calibration.strength,
        fractions,
        torch.stack([propensities[fraction] for fraction in fractions]),
        tuple(costs[fraction] for fraction in fractions),
    )
