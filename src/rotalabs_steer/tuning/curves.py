"""How far one layer's vector moves pairs at several strengths, and what each strength costs on neutral text.

Raw strengths of different layers cannot be compared, because the residual stream, and the vectors with it, grow from
layer to layer. Strengths are therefore given as fractions of the layer's calibrated strength, which spends the same
coherence budget at every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import Estimate, mean_interval
from rotalabs_steer.measures.coherence import CoherenceCost  # noqa: TC001 - a record's hints are read at run time


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """The propensities of pairs, and the cost on neutral text, at several strengths of one layer's vector.

    Attributes:
        calibrated_strength: the strength at which the vector spends the coherence budget.
        fractions: the measured strengths, as fractions of the calibrated strength. −1, 0 and 1 are among them.
        propensities: `[fractions, pairs]`, nats per token.
        costs: the cost at each fraction.

    Raises:
        OptionError: −1, 0 or 1 is missing, or there is not a row and a cost for each fraction.
    """

    layer_index: int = field(metadata={"key": "layer"})
    calibrated_strength: float = field(metadata={"key": "unit"})
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

    def at(self, fraction: float) -> torch.Tensor:
        """`[pairs]`: the propensities at a fraction that was measured."""
        return self.propensities[self.fractions.index(fraction)]

    def cost_at(self, fraction: float) -> CoherenceCost:
        """The cost at a fraction that was measured."""
        return self.costs[self.fractions.index(fraction)]

    def change_at(self, fraction: float) -> Estimate:
        """The mean change of the propensity against the unsteered model. At fraction 0 it is exactly 0."""
        return mean_interval((self.at(fraction) - self.at(0.0)).tolist()) if fraction else Estimate(0.0, 0.0, 0.0)

    @property
    def effects(self) -> torch.Tensor:
        """`[pairs]`: half the difference between the propensities at fractions 1 and −1."""
        return (self.at(1.0) - self.at(-1.0)) / 2

    @property
    def effect(self) -> Estimate:
        """The mean effect over pairs, in nats per token."""
        return mean_interval(self.effects.tolist())

    @property
    def anti_steerable(self) -> float:
        """The share of pairs that move the wrong way (Tan et al. 2024, arXiv:2407.12404)."""
        return float((self.effects < 0).float().mean())

    @property
    def steerability(self) -> Estimate:
        """The least-squares slope of the propensity against the fraction, mean over pairs (Tan et al. 2024)."""
        fractions = torch.tensor(self.fractions)
        centred = fractions - fractions.mean()
        return mean_interval((centred @ self.propensities / centred.square().sum()).tolist())
