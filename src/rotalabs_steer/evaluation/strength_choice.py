"""Which of the measured strengths to use."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from rotalabs_steer.measures.coherence import DEFAULT_BUDGET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.evaluation.tradeoffs import TradeoffResult


def find_optimal_strength(
    results: Sequence[TradeoffResult],
    min_target_rate: float | None = 0.9,
    max_false_positive_rate: float | None = 0.1,
    min_coherence: float | None = 0.7,
    *,
    max_kl_cost: float | None = DEFAULT_BUDGET,
) -> float | None:
    """The strength with the highest target rate among those that meet every limit; of equals, the weakest.

    There are two measures of coherence, the caller's score and the cost in KL. Those that were measured must be within
    their limits, and at least one must have been measured. Any other quantity that has a limit must have been measured.
    If no strength qualifies, the result is None, and a warning gives the reasons for every strength.

    Args:
        min_target_rate, max_false_positive_rate, min_coherence: limits; None means no limit.
        max_kl_cost: the coherence budget, nats per token on neutral text; None means no limit.
    """

    def obstacles(result: TradeoffResult) -> list[str]:
        """The reasons why a strength does not qualify."""
        found = [
            _at_least("target rate", result.target_behavior_rate, min_target_rate),
            _at_most("false-positive rate", result.false_positive_rate, max_false_positive_rate),
        ]
        if result.coherence_score is not None:
            found.append(_at_least("coherence", result.coherence_score, min_coherence))
        if result.kl_cost is not None:
            found.append(_at_most("KL cost", result.kl_cost, max_kl_cost))
        unmeasured = result.coherence_score is None and result.kl_cost is None
        if unmeasured and not (min_coherence is None and max_kl_cost is None):
            found.append("coherence not measured")
        return [obstacle for obstacle in found if obstacle]

    by_result = [(result, obstacles(result)) for result in results]
    qualified = [result for result, found in by_result if not found]
    if qualified:
        return max(qualified, key=lambda result: (result.target_behavior_rate or 0.0, -abs(result.strength))).strength
    reasons = [f"{result.strength:g}: {', '.join(found)}" for result, found in by_result] or ["there are no results"]
    warnings.warn(f"No strength meets the limits. {'; '.join(reasons)}.", stacklevel=2)
    return None


def _at_least(name: str, value: float | None, limit: float | None) -> str | None:
    if limit is None or (value is not None and value >= limit):
        return None
    return f"{name} not measured" if value is None else f"{name} {value:.2f} < {limit:g}"


def _at_most(name: str, value: float | None, limit: float | None) -> str | None:
    if limit is None or (value is not None and value <= limit):
        return None
    return f"{name} not measured" if value is None else f"{name} {value:.2f} > {limit:g}"
