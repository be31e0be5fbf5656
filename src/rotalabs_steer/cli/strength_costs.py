"""What the strengths of raw vector sets cost, measured before the first answer.

Strength 1 of a calibrated set costs the coherence budget. A raw set, as extraction makes it, has no such unit, so only
a measurement tells whether answers hold together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """The cost of one raw set. As text it is the warning for a cost that is too high.

    Attributes:
        kl: KL(unsteered ‖ steered) on neutral text, nats per token; None where the model's predictions are not finite.
        suggested: the strength of the same sign that costs the usual budget, where one was looked for and found.
    """

    behavior: str
    strength: float
    kl: float | None
    suggested: float | None = None

    @property
    def is_high(self) -> bool:
        """Whether the cost is so far above the usual budget that answers may fall apart."""
        return self.kl is None or self.kl >= _WARN_FROM * DEFAULT_BUDGET

    def to_record(self) -> dict[str, Any]:
        """The cost as JSON has it."""
        return {
            "behavior": self.behavior,
            "strength": self.strength,
            "kl": self.kl,
            "usual_budget": DEFAULT_BUDGET,
            "suggested_strength": self.suggested,
        }

    def __str__(self) -> str:
        steered = f"{self.behavior}={self.strength:g}"
        hint = "a smaller strength" if self.suggested is None else f"{self.behavior}={self.suggested:g}"
        if self.kl is None:
            return f"{steered} makes the model's predictions NaN or infinite. Try {hint}."
        return (
            f"{steered} costs {self.kl:.2g} nats of KL per token, {self.kl / DEFAULT_BUDGET:.0f} × the usual budget of "
            f"{DEFAULT_BUDGET:g}: answers may fall apart. Try {hint}."
        )


def measure_costs(
    model: LoadedModel, sets: Mapping[str, SteeringVectorSet], strengths: Mapping[str, float], intervention: str
) -> list[StrengthCost]:
    """What each raw set that acts costs by itself, on every token of neutral text.

    Raises:
        SteeringError: the unsteered model's predictions on neutral text cannot be had.
    """
    raw = {name: found for name, found in sets.items() if strengths[name] and not _is_calibrated(found, intervention)}
    if not raw:
        return []
    probe = CoherenceProbe(model.network, model.chat, neutral_passages()[:_PASSAGES])
    costs = []
    for name, found in raw.items():
        strength = strengths[name]
        injector = MultiVectorInjector(model.network, {name: found}, intervention=intervention)

        def kl_at(size: float, injector: Any = injector, name: str = name, sign: float = strength) -> float:
            injector.set_strength(name, math.copysign(size, sign))
            try:
                return probe.cost()
            except (ActivationError, VectorError):  # numbers of the model or of the scaled vector overflow
                return math.nan

        with unsteered(model.network), injector.scoped():
            kl = kl_at(abs(strength))
            cost = StrengthCost(name, strength, kl if math.isfinite(kl) else None)
            if cost.is_high:
                cost = StrengthCost(name, strength, cost.kl, _affordable(kl_at, strength, cost.kl))
        costs.append(cost)
    return costs


def _is_calibrated(vectors: SteeringVectorSet, intervention: str) -> bool:
    """Whether strength 1 costs the budget. Tuning measures one layer, whose vector is added."""
    one_layer = len(vectors.acting_layers) == 1
    return vectors.metadata.get("calibration") is not None and one_layer and intervention == "add"


def _affordable(kl_at: Any, strength: float, kl: float | None) -> float | None:
    """The strength that costs the budget, to two digits; None where there is none."""
    start = abs(strength) * (0.25 if kl is None else math.sqrt(DEFAULT_BUDGET / kl))
    try:
        found = solve_quadratic(kl_at, start, DEFAULT_BUDGET)
    except OptionError:  # the cost jumps over the budget
        return None
    return float(f"{math.copysign(found, strength):.2g}")
