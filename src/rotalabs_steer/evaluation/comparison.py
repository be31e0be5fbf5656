"""Steering compared with another way to the same behavior, such as a system prompt."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import OptionError
from rotalabs_steer.intervals import compare_paired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rotalabs_steer.evaluation.tradeoffs import TradeoffResult


def compare_with_baseline(
    steered_results: Sequence[TradeoffResult],
    baseline_rate: float,
    baseline_false_positive: float = 0.0,
    *,
    baseline_outcomes: Sequence[bool] | None = None,
    baseline_false_positive_outcomes: Sequence[bool] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The difference between the rates at each strength and those of a baseline.

    A paired test needs the baseline's outcome for each prompt, in the order of the steered prompts. With outcomes,
    `paired` holds the mean difference, its interval and the p-value of a sign-flip test. Without them it is None, and
    `improvement_low` and `improvement_high` only account for the uncertainty of the steered rate.

    Returns:
        `baseline` (`target_rate`, `false_positive_rate`) and `by_strength`, a list of dictionaries of `strength`,
        `target_rate`, `improvement_over_baseline` with `improvement_low` and `improvement_high`, `paired`,
        `false_positive_rate`, and `fp_increase` with `fp_paired`. What was not measured is None.

    Raises:
        OptionError: a rate is not between 0 and 1, or outcomes do not match their rate or the number of prompts.
    """
    _check("baseline_rate", baseline_rate, baseline_outcomes)
    _check("baseline_false_positive", baseline_false_positive, baseline_false_positive_outcomes)

    def row(result: TradeoffResult) -> dict[str, Any]:
        interval = result.target_interval
        return {
            "strength": result.strength,
            "target_rate": result.target_behavior_rate,
            "improvement_over_baseline": _minus(result.target_behavior_rate, baseline_rate),
            "improvement_low": _minus(interval.low if interval else None, baseline_rate),
            "improvement_high": _minus(interval.high if interval else None, baseline_rate),
            "paired": _paired(baseline_outcomes, result.target_outcomes, seed),
            "false_positive_rate": result.false_positive_rate,
            "fp_increase": _minus(result.false_positive_rate, baseline_false_positive),
            "fp_paired": _paired(baseline_false_positive_outcomes, result.false_positive_outcomes, seed),
        }

    return {
        "baseline": {"target_rate": baseline_rate, "false_positive_rate": baseline_false_positive},
        "by_strength": [row(result) for result in steered_results],
    }


def _check(name: str, rate: float, outcomes: Sequence[bool] | None) -> None:
    if not 0 <= rate <= 1:
        raise OptionError(f"{name} is {rate!r}; a rate lies between 0 and 1.")
    # Rates are often given in whole per cent, so a rate may differ from that of the outcomes by rounding.
    if outcomes is not None and (not outcomes or abs(sum(outcomes) / len(outcomes) - rate) > 0.005):
        raise OptionError(f"{name} is {rate}, but the outcomes given for it are {sum(outcomes)} of {len(outcomes)}.")


def _minus(value: float | None, baseline: float) -> float | None:
    return None if value is None else value - baseline


def _paired(before: Sequence[bool] | None, after: Sequence[bool] | None, seed: int) -> dict[str, Any] | None:
    if before is None or after is None:
        return None
    return asdict(compare_paired(before, after, seed=seed))
