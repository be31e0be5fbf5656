"""How often answers show a behaviour at each of several strengths, against the unsteered model on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import as_truth, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.metrics import BehaviorMetrics
from rotalabs_steer.generation.answers import Sampling, TimedAnswers, answer_prompts
from rotalabs_steer.generation.continuation import spoken
from rotalabs_steer.intervals import compare_paired, wilson_interval
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.measures.text_statistics import measure_texts
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import on_plain_model
from rotalabs_steer.steering.strengths import check_strength

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.vectors import SteeringVector

EVALUATION_STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
SWEEP_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclass(frozen=True)
class SteeredAnswers:
    """Answers at one strength, and what that strength costs on neutral text (nats per token)."""

    strength: float
    answers: TimedAnswers
    kl_cost: float


@on_plain_model
def answers_at_strengths(
    model: nn.Module,
    tokenizer: Any,
    vector: SteeringVector,
    prompts: Sequence[Prompt],
    strengths: Sequence[float],
    sampling: Sampling | None = None,
    *,
    show_progress: bool = True,
) -> tuple[SteeredAnswers, list[SteeredAnswers]]:
    """The unsteered answers, and those at each strength.

    Raises:
        OptionError: there are no prompts or no strengths.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    levels, prompts = list_of_strengths(strengths), list_of("prompts", prompts)
    if len(prompts) == 0 or not levels:
        raise OptionError(
            f"Nothing to measure: {len(prompts)} prompts, {len(levels)} strengths. Give at least one of each."
        )
    injector = ActivationInjector(model, [vector])
    probe = CoherenceProbe(model, tokenizer)
    answers = answer_prompts(model, tokenizer, prompts, sampling, show_progress=show_progress, description="unsteered")
    unsteered = SteeredAnswers(0.0, answers, 0.0)
    measured = []
    for strength in levels:
        if strength == 0:  # bit for bit the unsteered model
            measured.append(unsteered)
            continue
        injector.strength = strength
        with injector:
            answers = answer_prompts(
                model, tokenizer, prompts, sampling, show_progress=show_progress, description=f"strength {strength:g}"
            )
            measured.append(SteeredAnswers(strength, answers, probe.cost()))
    return unsteered, measured


def list_of_strengths(strengths: float | Sequence[float]) -> list[float]:
    """The strengths to measure at, each as a float; one number is a list of one.

    Raises:
        OptionError: one is not a finite number.
    """
    if isinstance(strengths, (list, tuple)) and not strengths:
        return []
    levels = check_strength(strengths)
    return list(levels) if isinstance(levels, tuple) else [levels]


def outcomes(texts: Sequence[str], shows_behavior: Callable[[str], bool]) -> tuple[bool, ...]:
    """Whether each text shows the behaviour.

    Raises:
        OptionError: the function returned something else than true or false (of Python, numpy or torch), 0 or 1.
    """
    found: list[bool] = []
    for text in texts:
        returned = shows_behavior(text)
        outcome = as_truth(returned)
        if outcome is None:
            raise OptionError(
                f"The function that detects the behaviour returned {returned!r:.40} for {text!r:.60}; it must return "
                "True or False."
            )
        found.append(outcome)
    return tuple(found)


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
    """The rate of a behaviour at each strength (0 to 2 in steps of a half), with its interval and a paired test.

    The baseline is the unsteered model on the same prompts, whether or not 0 is among the strengths.

    Args:
        is_target_behavior_fn: whether a text shows the behaviour. Of a model that thinks first it is given what
            follows.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts or strengths, or the function returned None.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    if not callable(is_target_behavior_fn):
        raise OptionError(f"is_target_behavior_fn is {is_target_behavior_fn!r:.80}; it must be a function of a text.")
    sampling, chat = sampling or Sampling(), ChatTokenizer.of(tokenizer, template_options)

    def shown(run: SteeredAnswers) -> tuple[bool, ...]:
        return outcomes(spoken(chat, prompts, run.answers.texts, sampling.system_prompt), is_target_behavior_fn)

    unsteered, measured = answers_at_strengths(
        model,
        chat,
        steering_vector,
        prompts,
        EVALUATION_STRENGTHS if strengths is None else strengths,
        sampling,
        show_progress=show_progress,
    )
    before = shown(unsteered)
    metrics = []
    for run in measured:
        after = before if run is unsteered else shown(run)
        rate = wilson_interval(sum(after), len(after))
        metrics.append(
            BehaviorMetrics(
                steering_vector.behavior,
                float(run.strength),
                rate.mean,
                sum(before) / len(before),
                target_interval=rate,
                change=compare_paired(before, after, seed=sampling.seed),
                kl_cost=run.kl_cost,
                text=measure_texts(run.answers.texts),
                latency_ms=run.answers.latency_ms,
                tokens_per_second=run.answers.tokens_per_second,
                num_samples=len(after),
                seed=sampling.seed,
            )
        )
    return metrics


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
    """As `evaluate_steering_strength`, in plain dictionaries, at strengths 0 to 2.

    Each has `strength`, `behavior_rate` with `behavior_low` and `behavior_high`, `change` against the unsteered model
    with `change_low`, `change_high` and `p_value`, `kl_cost`, `repetition`, `avg_latency_ms`, `tokens_per_second`,
    `num_samples` and `seed`.

    Raises:
        OptionError, VectorError, LayerError, ModelMismatchError: as in `evaluate_steering_strength`.
    """
    return [
        _row(metrics)
        for metrics in evaluate_steering_strength(
            model,
            tokenizer,
            test_prompts,
            steering_vector,
            is_target_behavior_fn,
            SWEEP_STRENGTHS if strengths is None else strengths,
            show_progress,
            sampling=sampling,
            template_options=template_options,
        )
    ]


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
