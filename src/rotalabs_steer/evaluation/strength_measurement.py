"""What steering at a strength does to a model's answers. All evaluations of answers in this package start from this."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import as_truth, list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.generation.answers import Sampling, TimedAnswers, answer_prompts
from rotalabs_steer.generation.continuation import spoken
from rotalabs_steer.intervals import Estimate, PairedComparison, compare_paired, rate_of
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.measures.text_statistics import TextMeasures, measure_texts
from rotalabs_steer.steering.injection import ActivationInjector, MultiVectorInjector
from rotalabs_steer.steering.plain_model import unsteered
from rotalabs_steer.steering.strengths import check_strength

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.steering.acting_layers import Vectors

_ALL = slice(None)


@dataclass(frozen=True)
class StrengthMeasurement:
    """The answers to some prompts at one strength, and what was found in them.

    Attributes:
        answers: in the order of the prompts, with the time they took.
        said: what each answer says after the model's thoughts. This is what is judged.
        outcomes: for each prompt, whether what is said shows the behavior.
        unsteered_outcomes: the same for the unsteered model; None if there is nothing to compare with.
        kl_cost: KL(unsteered ‖ steered) on neutral text, nats per token; None if there is nothing to compare with.
        text: length and repetition of the answers.
        seed: of generation and tests.
    """

    strength: float
    answers: TimedAnswers
    said: tuple[str, ...]
    outcomes: tuple[bool, ...]
    unsteered_outcomes: tuple[bool, ...] | None
    kl_cost: float | None
    text: TextMeasures | None
    seed: int

    def rate(self, part: slice = _ALL) -> Estimate | None:
        """The share of a part of the prompts whose answers show the behavior; None if there are no prompts."""
        return rate_of(self.outcomes[part])

    def unsteered_rate(self, part: slice = _ALL) -> Estimate | None:
        """The same share for the unsteered model."""
        return rate_of(self.unsteered_outcomes[part]) if self.unsteered_outcomes else None

    def change(self, part: slice = _ALL) -> PairedComparison | None:
        """The steered against the unsteered outcomes of a part of the prompts; None if there are none."""
        if not self.unsteered_outcomes or not self.outcomes[part]:
            return None
        return compare_paired(self.unsteered_outcomes[part], self.outcomes[part], seed=self.seed)

    def shared_fields(self) -> dict[str, Any]:
        """The fields that `BehaviorMetrics`, `RefusalMetrics` and `TradeoffResult` have in common."""
        return {
            "strength": self.strength,
            "kl_cost": self.kl_cost,
            "text": self.text,
            "latency_ms": self.answers.latency_ms,
            "tokens_per_second": self.answers.tokens_per_second,
            "num_samples": len(self.outcomes),
            "seed": self.seed,
        }


def measure_strengths(
    model: nn.Module,
    tokenizer: Any,
    steering: Vectors | Iterable[Vectors] | ActivationInjector | MultiVectorInjector | None,
    prompts: Sequence[Prompt],
    strengths: float | Sequence[float],
    shows_behavior: Callable[[str], bool],
    sampling: Sampling | None = None,
    *,
    template_options: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> list[StrengthMeasurement]:
    """Lets the model answer prompts at each strength, and unsteered to compare with.

    Args:
        steering: vectors, which act at each of the strengths. An injector acts as it is set, so there must be one
            strength, which is only recorded. None measures the model as it is, with nothing to compare with.
        shows_behavior: whether a text shows the behavior.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts or no strengths, the function is not callable or returned something other
            than true or false, or an answer ends inside the model's thoughts.
        VectorError, LayerError, ModelMismatchError: the vectors do not fit the model.
    """
    if not callable(shows_behavior):
        raise OptionError(
            f"The function that detects the behavior is {shows_behavior!r:.80}; it must be a function of a text."
        )
    levels, prompts = list_of_strengths(strengths), list_of("prompts", prompts)
    if not prompts or not levels:
        raise OptionError(
            f"Nothing to measure: {len(prompts)} prompts, {len(levels)} strengths. Give at least one of each."
        )
    chat, sampling = ChatTokenizer.of(tokenizer, template_options), sampling or Sampling()

    def answer(description: str) -> TimedAnswers:
        return answer_prompts(model, chat, prompts, sampling, show_progress=show_progress, description=description)

    def measurement(
        strength: float, answers: TimedAnswers, kl_cost: float | None, before: tuple[bool, ...] | None
    ) -> StrengthMeasurement:
        said = spoken(chat, prompts, answers.texts, sampling.system_prompt)
        found, text = outcomes(said, shows_behavior), measure_texts(answers.texts)
        return StrengthMeasurement(strength, answers, said, found, before, kl_cost, text, sampling.seed)

    if steering is None:
        return [measurement(levels[0], answer("as it is"), None, None)]
    if isinstance(steering, ActivationInjector | MultiVectorInjector):
        if len(levels) > 1:
            raise OptionError(
                f"An injector acts at the strength that it is set to, so {levels} are too many strengths."
            )
        injectors = {levels[0]: steering}
    else:  # Strength 0 is bit for bit the unsteered model, which is measured anyway.
        injectors = {level: ActivationInjector(model, steering, level) for level in levels if level != 0}
    measured = []
    with unsteered(model):
        probe = CoherenceProbe(model, chat)
        plain = measurement(0.0, answer("unsteered"), 0.0, None)
        plain = dataclasses.replace(plain, unsteered_outcomes=plain.outcomes)
        for level in levels:
            if level not in injectors:
                measured.append(plain)
                continue
            with injectors[level].scoped():
                answers, kl_cost = answer(f"strength {level:g}"), probe.cost()
            # The function that detects the behavior may itself ask this model, so it is called outside the scope.
            measured.append(measurement(level, answers, kl_cost, plain.outcomes))
    return measured


def mean_or_none(estimate: Estimate | None) -> float | None:
    """The mean of an estimate; None if nothing was measured."""
    return estimate.mean if estimate else None


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
    """Whether each text shows the behavior.

    Raises:
        OptionError: the function returned something other than true or false (of Python, numpy or torch), 0 or 1.
    """
    found: list[bool] = []
    for text in texts:
        returned = shows_behavior(text)
        outcome = as_truth(returned)
        if outcome is None:
            raise OptionError(
                f"The function that detects the behavior returned {returned!r:.40} for {text!r:.60}; it must return "
                "True or False."
            )
        found.append(outcome)
    return tuple(found)
