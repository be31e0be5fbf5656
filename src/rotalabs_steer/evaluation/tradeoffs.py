"""How often each strength brings about the behavior where it is wanted, and where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping  # noqa: TC003 - a record's hints are read at run time
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import list_of
from rotalabs_steer.evaluation.behavior_rates import EVALUATION_STRENGTHS
from rotalabs_steer.evaluation.strength_measurement import StrengthMeasurement, mean_or_none, measure_strengths
from rotalabs_steer.generation.answers import Sampling
from rotalabs_steer.intervals import Estimate, PairedComparison, mean_of
from rotalabs_steer.measures.text_statistics import TextMeasures  # noqa: TC001 - as above

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rotalabs_steer.vectors import SteeringVector


@dataclass(frozen=True)
class TradeoffResult:
    """What was measured at one strength. What was not measured is None.

    Attributes:
        target_behavior_rate: share of the answers to target prompts that show the behavior.
        false_positive_rate: share of the answers to control prompts that show it.
        coherence_score, helpfulness_score: means of the caller's scores, over all prompts and over control prompts.
        latency_ms: mean wait for an answer; prompts are answered in batches.
        num_samples: number of target and control prompts together.
        target_interval, false_positive_interval: Wilson intervals of the rates.
        coherence_interval, helpfulness_interval: intervals of the means; see `mean_interval`.
        target_change, false_positive_change: against the unsteered answers to the same prompts, with their tests.
        target_outcomes, false_positive_outcomes: for each prompt in order, whether its answer shows the behavior.
        kl_cost: KL(unsteered ‖ steered) on neutral text, nats per token.
        text: length and repetition of all answers.
        seed: of generation and tests.
        extra: further keys that the file has from which the result was loaded.
    """

    strength: float
    target_behavior_rate: float | None
    false_positive_rate: float | None
    coherence_score: float | None
    helpfulness_score: float | None
    latency_ms: float | None
    num_samples: int
    _: KW_ONLY
    target_interval: Estimate | None = None
    false_positive_interval: Estimate | None = None
    coherence_interval: Estimate | None = None
    helpfulness_interval: Estimate | None = None
    target_change: PairedComparison | None = None
    false_positive_change: PairedComparison | None = None
    target_outcomes: tuple[bool, ...] | None = field(default=None, repr=False)
    false_positive_outcomes: tuple[bool, ...] | None = field(default=None, repr=False)
    kl_cost: float | None = None
    text: TextMeasures | None = None
    tokens_per_second: float | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-like values, those of `extra` among them."""
        record = asdict(self)
        return {**record.pop("extra"), **record}


def analyze_tradeoffs(
    model: nn.Module,
    tokenizer: Any,
    steering_vector: SteeringVector,
    target_prompts: Sequence[str],
    control_prompts: Sequence[str],
    is_target_behavior_fn: Callable[[str], bool],
    coherence_fn: Callable[[str], float | None] | None = None,
    helpfulness_fn: Callable[[str, str], float | None] | None = None,
    strengths: Sequence[float] | None = None,
    show_progress: bool = True,
    system_prompt: str | None = None,
    *,
    sampling: Sampling | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[TradeoffResult]:
    """Measures a vector at each strength (0 to 2 in steps of a half).

    If the model thinks first, all three functions are given only what follows the thoughts.

    Args:
        target_prompts: prompts whose answers should show the behavior.
        control_prompts: prompts whose answers should not.
        is_target_behavior_fn: whether a text shows the behavior.
        coherence_fn: scores a response. A response for which it returns None is left out of the mean.
        helpfulness_fn: scores a control prompt and the response to it, in the same way.
        system_prompt: goes before every prompt, in place of the one in `sampling`.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts or strengths, or the function returned None.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    sampling = sampling or Sampling()
    if system_prompt is not None:
        sampling = dataclasses.replace(sampling, system_prompt=system_prompt)
    target_prompts = list_of("target_prompts", target_prompts)
    control_prompts = list_of("control_prompts", control_prompts)
    measured = measure_strengths(
        model,
        tokenizer,
        steering_vector,
        [*target_prompts, *control_prompts],
        EVALUATION_STRENGTHS if strengths is None else strengths,
        is_target_behavior_fn,
        sampling,
        template_options=template_options,
        show_progress=show_progress,
    )
    target, control = slice(len(target_prompts)), slice(len(target_prompts), None)

    def result(one: StrengthMeasurement) -> TradeoffResult:
        coherence = mean_of([coherence_fn(text) for text in one.said]) if coherence_fn else None
        answered = zip(control_prompts, one.said[control], strict=True)
        helpfulness = mean_of([helpfulness_fn(*pair) for pair in answered]) if helpfulness_fn else None
        return TradeoffResult(
            target_behavior_rate=mean_or_none(one.rate(target)),
            false_positive_rate=mean_or_none(one.rate(control)),
            coherence_score=mean_or_none(coherence),
            helpfulness_score=mean_or_none(helpfulness),
            target_interval=one.rate(target),
            false_positive_interval=one.rate(control),
            coherence_interval=coherence,
            helpfulness_interval=helpfulness,
            target_change=one.change(target),
            false_positive_change=one.change(control),
            target_outcomes=one.outcomes[target],
            false_positive_outcomes=one.outcomes[control],
            **one.shared_fields(),
        )

    return [result(one) for one in measured]
