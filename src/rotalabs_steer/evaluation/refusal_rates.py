"""How well a model's refusals tell harmful prompts from harmless ones, steered and not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.metrics import EvaluationResult, RefusalCounts, RefusalMetrics
from rotalabs_steer.evaluation.strength_measurement import StrengthMeasurement, mean_or_none, measure_strengths
from rotalabs_steer.intervals import mean_of
from rotalabs_steer.judging.refusal import is_refusal
from rotalabs_steer.steering.injection import ActivationInjector

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.generation.answers import Sampling
    from rotalabs_steer.steering.injection import MultiVectorInjector
    from rotalabs_steer.vectors import SteeringVector


def evaluate_refusal(
    model: nn.Module,
    tokenizer: Any,
    harmful_prompts: Sequence[Prompt],
    benign_prompts: Sequence[Prompt],
    is_refusal_fn: Callable[[str], bool] = is_refusal,
    steering_vector: SteeringVector | None = None,
    injector: ActivationInjector | MultiVectorInjector | None = None,
    strength: float = 1.0,
    show_progress: bool = True,
    *,
    coherence_fn: Callable[[str], float | None] | None = None,
    helpfulness_fn: Callable[[str, str], float | None] | None = None,
    sampling: Sampling | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> RefusalMetrics:
    """Refusal rates, precision, recall and F1, against the unsteered model on the same prompts.

    Without a vector or injector the model is measured as it is: the strength is 0 and there is no baseline.

    Args:
        benign_prompts: harmless prompts; those that sound harmful show over-refusal best.
        is_refusal_fn: whether a response is a refusal. If the model thinks first, this function and the two below are
            given only what follows the thoughts.
        injector: steers in place of `steering_vector`, at its own strength.
        strength: of `steering_vector`. With a `MultiVectorInjector`, which has several strengths, it is only recorded.
        coherence_fn: scores a response. A response for which it returns None is left out of the mean.
        helpfulness_fn: scores a benign prompt and the response to it, in the same way.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts, the function returned None, or both a vector and an injector are given.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    harmful_prompts = list_of("harmful_prompts", harmful_prompts)
    benign_prompts = list_of("benign_prompts", benign_prompts)
    if steering_vector is not None and injector is not None:
        raise OptionError("Give either steering_vector or injector: with both it is unclear what steers.")
    if steering_vector is not None:
        injector = ActivationInjector(model, [steering_vector], strength)
    (measured,) = measure_strengths(
        model,
        tokenizer,
        injector,
        [*harmful_prompts, *benign_prompts],
        _strength(injector, strength),
        is_refusal_fn,
        sampling,
        template_options=template_options,
        show_progress=show_progress,
    )
    return refusal_metrics(measured, harmful_prompts, benign_prompts, coherence_fn, helpfulness_fn)


def refusal_metrics(
    measured: StrengthMeasurement,
    harmful_prompts: Sequence[Prompt],
    benign_prompts: Sequence[Prompt],
    coherence_fn: Callable[[str], float | None] | None = None,
    helpfulness_fn: Callable[[str, str], float | None] | None = None,
) -> RefusalMetrics:
    """The refusal rates in a measurement of the harmful prompts, followed by the benign ones."""
    harmful, benign = slice(len(harmful_prompts)), slice(len(harmful_prompts), None)
    prompts = [prompt_text(prompt) for prompt in (*harmful_prompts, *benign_prompts)]
    scores = [coherence_fn(text) if coherence_fn else None for text in measured.said]
    coherence = mean_of(scores)
    answered = zip(prompts[benign], measured.said[benign], strict=True)
    helpfulness = mean_of([helpfulness_fn(*pair) for pair in answered]) if helpfulness_fn else None
    rows = zip(prompts, measured.answers.texts, measured.outcomes, scores, strict=True)
    results = tuple(
        EvaluationResult(prompt, text, refused, number < len(harmful_prompts), measured.strength, score)
        for number, (prompt, text, refused, score) in enumerate(rows)
    )
    harmful_rate, benign_rate = measured.rate(harmful), measured.rate(benign)
    harmful_refused, benign_refused = sum(measured.outcomes[harmful]), sum(measured.outcomes[benign])
    return RefusalMetrics(
        "refusal",
        target_rate=mean_or_none(harmful_rate),
        baseline_rate=mean_or_none(measured.unsteered_rate(harmful)),
        target_interval=harmful_rate,
        change=measured.change(harmful),
        refusal_rate_harmful=mean_or_none(harmful_rate),
        harmful_interval=harmful_rate,
        refusal_rate_benign=mean_or_none(benign_rate),
        baseline_rate_benign=mean_or_none(measured.unsteered_rate(benign)),
        benign_interval=benign_rate,
        benign_change=measured.change(benign),
        counts=RefusalCounts(
            harmful_refused,
            len(harmful_prompts) - harmful_refused,
            benign_refused,
            len(benign_prompts) - benign_refused,
        ),
        coherence_score=mean_or_none(coherence),
        coherence_interval=coherence,
        helpfulness_on_benign=mean_or_none(helpfulness),
        helpfulness_interval=helpfulness,
        results=results,
        **measured.shared_fields(),
    )


def _strength(injector: ActivationInjector | MultiVectorInjector | None, given: float) -> float:
    """The strength to record: the injector's own, if it has one and not several."""
    if injector is None:
        return 0.0
    acting = getattr(injector, "strength", given)
    return acting if isinstance(acting, float) else given
