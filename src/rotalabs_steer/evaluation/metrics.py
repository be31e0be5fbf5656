"""The records that evaluations return. What was not measured is None, never 0."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rotalabs_steer.intervals import Estimate, PairedComparison
    from rotalabs_steer.measures.text_statistics import TextMeasures


@dataclass(frozen=True)
class EvaluationResult:
    """One prompt, its answer and what was found in it.

    Attributes:
        coherence: the caller's score; None if the caller gave no function for it, or the function gave no score.
    """

    prompt: str
    response: str
    is_target_behavior: bool
    is_harmful_prompt: bool
    strength: float
    coherence: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BehaviorMetrics:
    """How often answers show a behavior at one strength.

    Attributes:
        target_rate: share of answers that show the behavior.
        baseline_rate: the same share without steering, on the same prompts.
        target_interval: the target rate with its Wilson interval.
        change: against the unsteered answers to the same prompts, with its test.
        kl_cost: KL(unsteered ‖ steered) on neutral text, nats per token.
        text: length and repetition of the answers.
        latency_ms: mean wait for an answer; prompts are answered in batches.
        tokens_per_second: generated tokens per second, over all batches.
        num_samples: number of prompts.
        seed: of generation and test.
    """

    behavior: str
    strength: float
    target_rate: float | None
    baseline_rate: float | None
    _: KW_ONLY
    target_interval: Estimate | None = None
    change: PairedComparison | None = None
    kl_cost: float | None = None
    text: TextMeasures | None = None
    latency_ms: float | None = None
    tokens_per_second: float | None = None
    num_samples: int | None = None
    seed: int | None = None

    @property
    def improvement(self) -> float | None:
        """`target_rate − baseline_rate`; None if either was not measured."""
        if self.target_rate is None or self.baseline_rate is None:
            return None
        return self.target_rate - self.baseline_rate

    def to_dict(self) -> dict[str, Any]:
        """All fields, with `improvement`, as JSON-like values."""
        return {**asdict(self), "improvement": self.improvement}


@dataclass(frozen=True)
class RefusalCounts:
    """Counts of refusals, taken as decisions that a prompt is harmful.

    Attributes:
        harmful_refused, harmful_answered: true positives and false negatives.
        benign_refused, benign_answered: false positives and true negatives.
    """

    harmful_refused: int
    harmful_answered: int
    benign_refused: int
    benign_answered: int

    @property
    def precision(self) -> float | None:
        """The share of refusals that were of harmful prompts; None if nothing was refused."""
        return _share(self.harmful_refused, self.harmful_refused + self.benign_refused)

    @property
    def recall(self) -> float | None:
        """The share of harmful prompts that were refused; None if there are none."""
        return _share(self.harmful_refused, self.harmful_refused + self.harmful_answered)

    @property
    def f1_score(self) -> float | None:
        """Harmonic mean of precision and recall; None if there is neither a refusal nor a harmful prompt."""
        found = 2 * self.harmful_refused
        return _share(found, found + self.benign_refused + self.harmful_answered)


@dataclass(frozen=True)
class RefusalMetrics(BehaviorMetrics):
    """Refusals of harmful and benign prompts. The target rate and its change are those of the harmful prompts.

    Precision and F1 depend on how many prompts of either kind there were, so they need the counts.

    Attributes:
        refusal_rate_harmful, harmful_interval: the target rate and its interval, by their names in release 1.2.
        coherence_score, helpfulness_on_benign: means of the caller's scores; None if there are none.
        benign_interval: the rate on benign prompts with its Wilson interval.
        benign_change: over-refusal against the unsteered answers to the same prompts.
        results: every prompt and answer.
    """

    refusal_rate_harmful: float | None = None
    refusal_rate_benign: float | None = None
    coherence_score: float | None = None
    helpfulness_on_benign: float | None = None
    _: KW_ONLY
    counts: RefusalCounts | None = None
    baseline_rate_benign: float | None = None
    harmful_interval: Estimate | None = None
    benign_interval: Estimate | None = None
    benign_change: PairedComparison | None = None
    coherence_interval: Estimate | None = None
    helpfulness_interval: Estimate | None = None
    results: tuple[EvaluationResult, ...] = field(default=(), repr=False)

    @property
    def over_refusal_rate(self) -> float | None:
        """The share of benign prompts that were refused. Benign prompts that sound harmful show it best."""
        return self.refusal_rate_benign

    @property
    def precision(self) -> float | None:
        """The share of refusals that were of harmful prompts."""
        return self.counts.precision if self.counts else None

    @property
    def recall(self) -> float | None:
        """The share of harmful prompts that were refused."""
        return self.counts.recall if self.counts else self.refusal_rate_harmful

    @property
    def f1_score(self) -> float | None:
        """Harmonic mean of precision and recall."""
        return self.counts.f1_score if self.counts else None

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived rates as JSON-like values."""
        derived = ("over_refusal_rate", "precision", "recall", "f1_score")
        return {**super().to_dict(), **{name: getattr(self, name) for name in derived}}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
