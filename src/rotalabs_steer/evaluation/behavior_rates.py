"""How often answers show a behavior at each of several strengths, against the unsteered model on the same prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.evaluation.metrics import BehaviorMetrics
from rotalabs_steer.evaluation.strength_measurement import mean_or_none, measure_strengths

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.vectors import SteeringVector

EVALUATION_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SWEEP_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


def evaluate_steering_strength(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    steering_vector: SteeringVector,
    is_target_behavior_fn: Callable[[str], bool],
    strengths: Sequence[float] | None = None,
    show_progress: bool = True,
    *,
    sampling: Sampling | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[BehaviorMetrics]:
    """The rate of a behavior at each strength (0 to 2 in steps of a half), with its interval and a paired test.

    The baseline is the unsteered model on the same prompts, whether or not 0 is among the strengths.

    Args:
        is_target_behavior_fn: whether a text shows the behavior. If the model thinks first, this function is given
            only what follows the thoughts.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts or strengths, or the function returned None.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    measured = measure_strengths(
        model,
        tokenizer,
        steering_vector,
        prompts,
        EVALUATION_STRENGTHS if strengths is None else strengths,
        is_target_behavior_fn,
        sampling,
        template_options=template_options,
        show_progress=show_progress,
    )
    return [
        BehaviorMetrics(
            steering_vector.behavior,
            target_rate=mean_or_none(one.rate()),
            baseline_rate=mean_or_none(one.unsteered_rate()),
            target_interval=one.rate(),
            change=one.change(),
            **one.shared_fields(),
        )
        for one in measured
    ]


def strength_sweep(
    model: nn.Module,
    tokenizer: Any,
    steering_vector: SteeringVector,
    test_prompts: Sequence[Prompt],
    is_target_behavior_fn: Callable[[str], bool],
    strengths: Sequence[float] | None = None,
    show_progress: bool = True,
    *,
    sampling: Sampling | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """As `evaluate_steering_strength`, in plain dictionaries, at eight strengths from 0 to 2.

    Each has `strength`, `behavior_rate` with `behavior_low` and `behavior_high`, `change` against the unsteered model
    with `change_low`, `change_high` and `p_value`, `kl_cost`, `repetition`, `avg_latency_ms`, `tokens_per_second`,
    `num_samples` and `seed`.

    Raises:
        OptionError, VectorError, LayerError, ModelMismatchError: as in `evaluate_steering_strength`.
    """
    levels = SWEEP_STRENGTHS if strengths is None else strengths
    measured = evaluate_steering_strength(
        model,
        tokenizer,
        test_prompts,
        steering_vector,
        is_target_behavior_fn,
        levels,
        show_progress,
        sampling=sampling,
        template_options=template_options,
    )
    return [_row(metrics) for metrics in measured]


def _row(metrics: BehaviorMetrics) -> dict[str, Any]:
    rate, change = metrics.target_interval, metrics.change
    assert rate is not None
    assert change is not None
    return {
        "strength": metrics.strength,
        "behavior_rate": rate.mean,
        "behavior_low": rate.low,
        "behavior_high": rate.high,
        "change": change.difference.mean,
        "change_low": change.difference.low,
        "change_high": change.difference.high,
        "p_value": change.p_value,
        "kl_cost": metrics.kl_cost,
        "repetition": metrics.text.repetition if metrics.text else None,
        "avg_latency_ms": metrics.latency_ms,
        "tokens_per_second": metrics.tokens_per_second,
        "num_samples": metrics.num_samples,
        "seed": metrics.seed,
    }
