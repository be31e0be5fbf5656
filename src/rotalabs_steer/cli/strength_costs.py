"""What the strengths of raw vector sets cost, measured before the first answer.

Strength 1 of a calibrated set costs at most the coherence budget. A raw set, as extraction makes it, has no such unit,
so only a measurement tells whether answers hold together.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.errors import ActivationError, OptionError, VectorError
from rotalabs_steer.measures.coherence import DEFAULT_BUDGET, CoherenceProbe, solve_quadratic
from rotalabs_steer.steering.injection import MultiVectorInjector
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rotalabs_steer.cli.loading import LoadedModel
    from rotalabs_steer.vectors import SteeringVectorSet

_PASSAGES = 2
"""Of the neutral passages; on the sample model their cost is within a tenth of that on all of them."""
_WARN_FROM = 4.0
"""Budgets. The cost grows with the square of the strength, so strength 2 of a calibrated set costs about as much."""


@dataclass(frozen=True)
class StrengthCost:
    """The cost of one raw set. As text it is the warning for a cost that is too high; its fields are those of the JSON.

    Attributes:
        kl: KL(unsteered ‖ steered) on neutral text, nats per token; None where the model's predictions are not finite.
        suggested_strength: the strength of the same sign that costs the usual budget, if the cost is high and there is
            one.
    """

    behavior: str
    strength: float
    kl: float | None
    suggested_strength: float | None = None
    usual_budget: float = DEFAULT_BUDGET

    @property
    def is_high(self) -> bool:
        """Whether the cost is so far above the usual budget that answers may fall apart."""
        return self.kl is None or self.kl >= _WARN_FROM * self.usual_budget

    def __str__(self) -> str:
        steered, suggested = f"{self.behavior}={self.strength:g}", self.suggested_strength
        hint = "a smaller strength" if suggested is None else f"{self.behavior}={suggested:g}"
        if self.kl is None:
            return f"{steered} makes the model's predictions NaN or infinite. Try {hint}."
        return (
            f"{steered} costs {self.kl:.2g} nats of KL per token, {self.kl / self.usual_budget:.0f} × the usual budget "
            f"of {self.usual_budget:g}: answers may fall apart. Try {hint}."
        )


def measure_costs(
    model: LoadedModel, sets: Mapping[str, SteeringVectorSet], strengths: Mapping[str, float], intervention: str
) -> list[StrengthCost]:
    """What each raw set that acts costs by itself, on every token of neutral text.

    Raises:
        SteeringError: the unsteered model's predictions on neutral text cannot be measured.
    """
    raw = {name: found for name, found in sets.items() if strengths[name] and not _is_calibrated(found, intervention)}
    if not raw:
        return []
    probe = CoherenceProbe(model.network, model.chat, neutral_passages()[:_PASSAGES])
    costs = []
    for name, found in raw.items():
        injector = MultiVectorInjector(model.network, {name: found}, intervention=intervention)
        with unsteered(model.network), injector.scoped():
            costs.append(_measure(probe, injector, name, strengths[name]))
    return costs


def _is_calibrated(vectors: SteeringVectorSet, intervention: str) -> bool:
    """Whether strength 1 costs at most the budget. Tuning measures one layer, whose vector is added."""
    one_layer = len(vectors.acting_layers) == 1
    return vectors.metadata.get("calibration") is not None and one_layer and intervention == "add"


def _measure(probe: CoherenceProbe, injector: MultiVectorInjector, behavior: str, strength: float) -> StrengthCost:
    """The cost of the injector at a strength, with the strength that costs the budget if the cost is high."""

    def kl_at(size: float) -> float:
        injector.set_strength(behavior, math.copysign(size, strength))
        try:
            return probe.cost()
        except (ActivationError, VectorError):  # numbers of the model or of the scaled vector overflow
            return math.nan

    kl = kl_at(abs(strength))
    cost = StrengthCost(behavior, strength, kl if math.isfinite(kl) else None)
    if not cost.is_high:
        return cost
    start = abs(strength) * (0.25 if cost.kl is None else math.sqrt(DEFAULT_BUDGET / cost.kl))
    try:
        size = solve_quadratic(kl_at, start, DEFAULT_BUDGET)
    except OptionError:  # the cost jumps over the budget
        return cost
    return dataclasses.replace(cost, suggested_strength=float(f"{math.copysign(size, strength):.2g}"))
