"""Which layer, and how strong: the effect on held-out pairs at a matched coherence cost.

Strengths of different layers cannot be compared: the residual stream grows from layer to layer, and raw vectors with
it. So every layer's unit is the strength that spends the same coherence budget there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.evaluation.coherence import DEFAULT_BUDGET, CoherenceProbe
from rotalabs_steer.evaluation.intervals import Estimate, bootstrap_mean
from rotalabs_steer.evaluation.propensity import pair_propensities
from rotalabs_steer.injection import ActivationInjector
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.datasets.pairs import ContrastPairDataset

FRACTIONS = (-1.0, -0.5, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class LayerCurve:
    """Propensities of one layer's vector, by strength.

    Attributes:
        unit: strength of the stored vector that spends the coherence budget.
        fractions: strengths measured, in units; 0 among them.
        propensities: `[fractions, pairs]`, nats per token.
    """

    layer_index: int
    unit: float
    fractions: tuple[float, ...]
    propensities: torch.Tensor

    @property
    def effects(self) -> torch.Tensor:
        """`[pairs]`: half the difference between the propensities at +1 and −1 unit."""
        at = self.propensities[self.fractions.index(1.0)], self.propensities[self.fractions.index(-1.0)]
        return (at[0] - at[1]) / 2

    @property
    def effect(self) -> Estimate:
        """Mean effect over pairs, nats per token."""
        return bootstrap_mean(self.effects.tolist())

    @property
    def anti_steerable(self) -> float:
        """Share of pairs that move the wrong way (Tan et al. 2024, arXiv:2407.12404)."""
        return float((self.effects < 0).float().mean())

    def mean_change(self) -> list[float]:
        """Mean change of propensity against the unsteered model, for each fraction."""
        change = self.propensities - self.propensities[self.fractions.index(0.0)]
        return change.mean(dim=1).tolist()


@dataclass(frozen=True, eq=False)
class LayerSearch:
    """The measured layers of one behaviour at one coherence budget."""

    behavior: str
    budget: float
    curves: tuple[LayerCurve, ...]

    @property
    def best(self) -> LayerCurve:
        """The layer with the largest mean effect."""
        return max(self.curves, key=lambda curve: float(curve.effects.mean()))


def candidate_layers(num_layers: int, count: int) -> list[int]:
    """Layers spread over 40 to 70 % of depth, where behaviours were found to steer best."""
    depths = [0.40 + 0.30 * step / max(count - 1, 1) for step in range(count)]
    return sorted({min(max(round(depth * num_layers) - 1, 0), num_layers - 1) for depth in depths})


def search_layers(
    model: nn.Module,
    tokenizer: Any,
    vectors: SteeringVectorSet,
    pairs: ContrastPairDataset,
    layers: Sequence[int],
    *,
    budget: float = DEFAULT_BUDGET,
    fractions: Sequence[float] = FRACTIONS,
    show_progress: bool = True,
) -> LayerSearch:
    """Measures the vectors of some layers on pairs that were not used to make them."""
    probe = CoherenceProbe(model, tokenizer)
    rendered = [render_pair(tokenizer, pair, place=f"pair {number}") for number, pair in enumerate(pairs)]
    unsteered = pair_propensities(model, rendered)
    ordered = tuple(sorted({*fractions, -1.0, 0.0, 1.0}))
    curves: list[LayerCurve] = []
    for layer in tqdm(layers, desc=f"measuring layers ({vectors.behavior})", unit="layer", disable=not show_progress):
        injector = ActivationInjector(model, [vectors[layer]])
        start = curves[-1].unit * vectors[curves[-1].layer_index].norm / vectors[layer].norm if curves else 1.0
        unit = probe.strength_at(injector, start, budget)
        rows = []
        with injector:
            for fraction in ordered:
                injector.strength = fraction * unit
                rows.append(unsteered if fraction == 0.0 else pair_propensities(model, rendered))
        curves.append(LayerCurve(layer, unit, ordered, torch.stack(rows)))
    return LayerSearch(vectors.behavior, budget, tuple(curves))


def calibrated_set(vectors: SteeringVectorSet, search: LayerSearch) -> SteeringVectorSet:
    """The measured layers' vectors, each rescaled so that strength 1.0 spends the coherence budget there.

    The set's metadata records the chosen layer, the budget and the measured effect; each vector's the factor.
    """
    best = search.best
    scaled = [vectors[curve.layer_index].scale(curve.unit) for curve in search.curves]
    effect = best.effect
    return SteeringVectorSet(
        vectors.behavior,
        scaled,
        {
            **vectors.metadata,
            "chosen_layer": best.layer_index,
            "calibration": {"unit": "strength 1.0 costs the budget", "budget_kl": search.budget},
            "effect": {"nats_per_token": effect.mean, "low": effect.low, "high": effect.high},
        },
    )
