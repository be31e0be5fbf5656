"""How well a model's refusals tell harmful prompts from harmless ones, steered and not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.errors import OptionError
from rotalabs_steer.evaluation.metrics import EvaluationResult, RefusalCounts, RefusalMetrics
from rotalabs_steer.evaluation.strengths import outcomes
from rotalabs_steer.generation.answers import Sampling, TimedAnswers, answer_prompts
from rotalabs_steer.generation.continuation import spoken
from rotalabs_steer.intervals import Estimate, PairedComparison, compare_paired, mean_of, rate_of
from rotalabs_steer.judging.refusal import is_refusal
from rotalabs_steer.measures.coherence import CoherenceProbe
from rotalabs_steer.measures.text_statistics import measure_texts
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
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

    Without a vector or injector the model is measured as it is: its strength is 0 and it has no baseline.

    Args:
        benign_prompts: harmless prompts; those that sound harmful show over-refusal best.
        is_refusal_fn: whether a response is a refusal. Of a model that thinks first it is given what follows.
        injector: steers in place of `steering_vector`, at its own strength.
        strength: of `steering_vector`; for a `MultiVectorInjector`, which has several, it is only recorded.
        coherence_fn: a score of a response; None for one that could not be scored, which is then left out.
        helpfulness_fn: a score of a benign prompt and the response to it.
        template_options: for the chat template, as in `{"enable_thinking": False}`.

    Raises:
        OptionError: there are no prompts, the function returned None, or both a vector and an injector are given.
        VectorError, LayerError, ModelMismatchError: the vector does not fit the model.
    """
    harmful_prompts = list_of("harmful_prompts", harmful_prompts)
    benign_prompts = list_of("benign_prompts", benign_prompts)
    prompts, split = [*harmful_prompts, *benign_prompts], len(harmful_prompts)
    if not prompts:
        raise OptionError("There are no prompts to evaluate refusals on.")
    if steering_vector is not None and injector is not None:
        raise OptionError("Give either steering_vector or injector: with both it is unclear what steers.")
    if steering_vector is not None:
        injector = ActivationInjector(model, [steering_vector], strength)
    sampling, chat = sampling or Sampling(), ChatTokenizer.of(tokenizer, template_options)

    def answer(description: str) -> TimedAnswers:
        return answer_prompts(model, chat, prompts, sampling, show_progress=show_progress, description=description)

    def said(answers: TimedAnswers) -> tuple[str, ...]:
        return spoken(chat, prompts, answers.texts, sampling.system_prompt)

    before, kl_cost = None, None
    if injector is None:
        answers = answer("as it is")
    else:
        with unsteered(model):
            before = outcomes(said(answer("unsteered")), is_refusal_fn)
            probe = CoherenceProbe(model, chat)
            with injector.scoped():
                answers = answer("steered")
                kl_cost = probe.cost()
    texts = said(answers)
    refused = outcomes(texts, is_refusal_fn)
    acting = _strength(injector, strength)
    scores = [coherence_fn(text) if coherence_fn else None for text in texts]
    coherence = mean_of(scores)
    shown = list(map(prompt_text, prompts))
    answered = zip(shown[split:], texts[split:], strict=True)
    helpfulness = mean_of([helpfulness_fn(*pair) if helpfulness_fn else None for pair in answered])
    harmful, benign = rate_of(refused[:split]), rate_of(refused[split:])
    baseline = rate_of(before[:split]) if before else None
    baseline_benign = rate_of(before[split:]) if before else None
    return RefusalMetrics(
        "refusal",
        acting,
        _mean(harmful),
        _mean(baseline),
        _mean(harmful),
        _mean(benign),
        _mean(coherence),
        _mean(helpfulness),
        counts=_count(refused, split),
        baseline_rate_benign=_mean(baseline_benign),
        target_interval=harmful,
        harmful_interval=harmful,
        benign_interval=benign,
        change=_change(before[:split], refused[:split], sampling.seed) if before else None,
        benign_change=_change(before[split:], refused[split:], sampling.seed) if before else None,
        coherence_interval=coherence,
        helpfulness_interval=helpfulness,
        kl_cost=kl_cost,
        text=measure_texts(answers.texts),
        latency_ms=answers.latency_ms,
        tokens_per_second=answers.tokens_per_second,
        num_samples=len(prompts),
        seed=sampling.seed,
        results=tuple(
            EvaluationResult(prompt, text, found, number < split, acting, score)
            for number, (prompt, text, found, score) in enumerate(
                zip(shown, answers.texts, refused, scores, strict=True)
            )
        ),
    )


def _strength(injector: ActivationInjector | MultiVectorInjector | None, given: float) -> float:
    """What to record: the injector's strength where it is one number."""
    if injector is None:
        return 0.0
    acting = getattr(injector, "strength", given)
    return float(acting) if isinstance(acting, int | float) else given


def _count(refused: Sequence[bool], split: int) -> RefusalCounts:
    harmful, benign = sum(refused[:split]), sum(refused[split:])
    return RefusalCounts(harmful, split - harmful, benign, len(refused) - split - benign)


def _change(before: Sequence[bool], after: Sequence[bool], seed: int) -> PairedComparison | None:
    return compare_paired(before, after, seed=seed) if after else None


def _mean(estimate: Estimate | None) -> float | None:
    return estimate.mean if estimate else None
