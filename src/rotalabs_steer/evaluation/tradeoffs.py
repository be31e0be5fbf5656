"""What each strength buys and what it costs: the behaviour where it is wanted and where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping  # noqa: TC003 - a record's hints are read at run time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import list_of
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.strengths import EVALUATION_STRENGTHS, SteeredAnswers, answers_at_strengths, outcomes
from rotalabs_steer.generation.answers import Sampling
from rotalabs_steer.intervals import Estimate, PairedComparison, compare_paired, mean_of, rate_of
from rotalabs_steer.measures.text_statistics import TextMeasures, measure_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rotalabs_steer.vectors import SteeringVector


@dataclass(frozen=True)
class TradeoffResult:
    """One strength. What was not measured is None.

    Attributes:
        target_behavior_rate: share of the answers to target prompts that show the behaviour.
        false_positive_rate: the same of control prompts.
        coherence_score, helpfulness_score: means of the caller's measures, on all prompts and on control prompts.
        latency_ms: mean wait for an answer; prompts are answered in batches.
        num_samples: target and control prompts.
        target_interval, false_positive_interval: Wilson intervals of the rates.
        coherence_interval, helpfulness_interval: intervals of the means; see `mean_interval`.
        target_change, false_positive_change: against the unsteered answers to the same prompts, with their tests.
        target_outcomes, false_positive_outcomes: for each prompt in order, whether its answer shows the behaviour.
        kl_cost: KL(unsteered ‖ steered) on neutral text, nats per token.
        text: length and repetition of all answers.
        seed: of generation and tests.
        extra: what a file had besides.
    """

    strength: float
    target_behavior_rate: float | None
    false_positive_rate: float | None
    coherence_score: float | None
    helpfulness_score: float | None
    latency_ms: float | None
    num_samples: int
    target_interval: Estimate | None = field(default=None, kw_only=True)
    false_positive_interval: Estimate | None = field(default=None, kw_only=True)
    coherence_interval: Estimate | None = field(default=None, kw_only=True)
    helpfulness_interval: Estimate | None = field(default=None, kw_only=True)
    target_change: PairedComparison | None = field(default=None, kw_only=True)
    false_positive_change: PairedComparison | None = field(default=None, kw_only=True)
    target_outcomes: tuple[bool, ...] | None = field(default=None, kw_only=True, repr=False)
    false_positive_outcomes: tuple[bool, ...] | None = field(default=None, kw_only=True, repr=False)
    kl_cost: float | None = field(default=None, kw_only=True)
    text: TextMeasures | None = field(default=None, kw_only=True)
    tokens_per_second: float | None = field(default=None, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    extra: Mapping[str, Any] = field(default_factory=dict, kw_only=True, repr=False)

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
) -> list[TradeoffResult]:
    """Measures a vector at each strength (0 to 2 in steps of a half).

    Args:
        target_prompts: prompts whose answers should show the behaviour.
        control_prompts: prompts whose answers should not.
        is_target_behavior_fn: whether a text shows the behaviour.
        coherence_fn: a score of a response; None for one that could not be scored, which is then left out.
        helpfulness_fn: a score of a control prompt and the response to it.
        system_prompt: before every prompt, in place of the one of `sampling`.

    Raises:
        OptionError: there are no prompts or strengths, or the function returned None.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    sampling = sampling or Sampling()
    if system_prompt is not None:
        sampling = dataclasses.replace(sampling, system_prompt=system_prompt)
    target_prompts = list_of("target_prompts", target_prompts)
    control_prompts = list_of("control_prompts", control_prompts)
    if not callable(is_target_behavior_fn):
        raise OptionError(f"is_target_behavior_fn is {is_target_behavior_fn!r:.80}; it must be a function of a text.")
    prompts, wanted = [*target_prompts, *control_prompts], len(target_prompts)
    unsteered, measured = answers_at_strengths(
        model,
        tokenizer,
        steering_vector,
        prompts,
        EVALUATION_STRENGTHS if strengths is None else strengths,
        sampling,
        show_progress=show_progress,
    )
    before = outcomes(unsteered.answers.texts, is_target_behavior_fn)

    def result(run: SteeredAnswers) -> TradeoffResult:
        texts = run.answers.texts
        found = before if run is unsteered else outcomes(texts, is_target_behavior_fn)
        target, control = rate_of(found[:wanted]), rate_of(found[wanted:])
        coherence = helpfulness = None
        if coherence_fn is not None:
            coherence = mean_of([coherence_fn(text) for text in texts])
        if helpfulness_fn is not None:
            answered = zip(control_prompts, texts[wanted:], strict=True)
            helpfulness = mean_of([helpfulness_fn(*pair) for pair in answered])
        return TradeoffResult(
            float(run.strength),
            target.mean if target else None,
            control.mean if control else None,
            coherence.mean if coherence else None,
            helpfulness.mean if helpfulness else None,
            run.answers.latency_ms,
            len(prompts),
            target_interval=target,
            false_positive_interval=control,
            coherence_interval=coherence,
            helpfulness_interval=helpfulness,
            target_change=compare_paired(before[:wanted], found[:wanted], seed=sampling.seed) if target else None,
            false_positive_change=compare_paired(before[wanted:], found[wanted:], seed=sampling.seed)
            if control
            else None,
            target_outcomes=found[:wanted],
            false_positive_outcomes=found[wanted:],
            kl_cost=run.kl_cost,
            text=measure_texts(texts),
            tokens_per_second=run.answers.tokens_per_second,
            seed=sampling.seed,
        )

    return [result(run) for run in measured]
