"""How much of its knowledge a steered model keeps: accuracy on questions with two answers, steered and unsteered.

A question counts as answered rightly if the right answer has the higher mean log-probability per token, from the first
token in which the answers differ. For "(A)" against "(B)" that compares the log-probabilities of the letters. Small
models cannot use letters (SmolLM2-135M chooses them at chance), so the package's questions have short sentences as
answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.pairs import ContrastPair, ContrastPairDataset, as_dataset, parse_pair
from rotalabs_steer.datasets.rendering import RenderedText, render_pair
from rotalabs_steer.intervals import Estimate, PairedComparison, compare_paired, wilson_interval
from rotalabs_steer.measures.propensity import response_log_probs
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from rotalabs_steer.datasets.rendering import RenderedPair
    from rotalabs_steer.steering.injection import ActivationInjector, MultiVectorInjector


@dataclass(frozen=True)
class CapabilityCheck:
    """How well a model answers questions.

    Attributes:
        accuracy: the share of questions answered rightly, with its Wilson interval. Chance is 0.5.
        log_odds: for each question, those of the right answer over the wrong one, in nats per token.
        unsteered: the accuracy without the injector; None if no injector was given.
        change: the steered minus the unsteered accuracy on the same questions, with its interval and test.
    """

    accuracy: Estimate
    log_odds: tuple[float, ...] = field(repr=False)
    unsteered: Estimate | None = None
    change: PairedComparison | None = None


def capability_questions() -> ContrastPairDataset:
    """The package's questions on general knowledge, arithmetic and reasoning. The right answer is the positive side."""
    lines = files("rotalabs_steer.measures").joinpath("data/capability.jsonl").read_text("utf-8").splitlines()
    return ContrastPairDataset("capability", [parse_pair(json.loads(line), "capability.jsonl") for line in lines])


class CapabilityProbe:
    """Measures a model's answers when it is made, and compares with them each time `measure` is called.

    The arguments and errors are those of `capability_check`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        questions: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        asked = capability_questions() if questions is None else as_dataset(questions)
        self._model = model
        self._seed = seed
        self._answers = [
            side
            for number, pair in enumerate(asked)
            for side in _from_difference(render_pair(tokenizer, pair, place=f"question {number}"))
        ]
        before = self._log_odds()
        self.unsteered = CapabilityCheck(_accuracy(before), tuple(before))

    def measure(self) -> CapabilityCheck:
        """Accuracy of the model as it is steered now, against the unsteered one."""
        before, after = self.unsteered.log_odds, self._log_odds()
        change = compare_paired([odds > 0 for odds in before], [odds > 0 for odds in after], seed=self._seed)
        return CapabilityCheck(_accuracy(after), tuple(after), self.unsteered.accuracy, change)

    def _log_odds(self) -> list[float]:
        scores = response_log_probs(self._model, self._answers)
        return (scores[0::2] - scores[1::2]).tolist()


def capability_check(
    model: nn.Module,
    tokenizer: Any,
    questions: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]] | None = None,
    injector: ActivationInjector | MultiVectorInjector | None = None,
    *,
    template_options: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> CapabilityCheck:
    """Measures the accuracy on questions, and how an injector changes it.

    Args:
        questions: pairs of a right (positive) and a wrong answer to a prompt. The default is the package's own. Answers
            may be the letters "(A)" and "(B)"; each letter should then be right equally often.
        injector: steers all positions at its own strength. Without one the model is measured as it is.
        template_options: options of the chat template, as in `{"enable_thinking": False}`.
        seed: the seed of the sign-flip test.

    Raises:
        DatasetError: there are no questions, or both answers of one are the same.
        ChatTemplateError: the tokenizer cannot render a question as a chat.
    """
    chat = ChatTokenizer.of(tokenizer, template_options)
    if injector is None:
        return CapabilityProbe(model, chat, questions, seed=seed).unsteered
    with unsteered(model):
        probe = CapabilityProbe(model, chat, questions, seed=seed)
        with injector.scoped():
            return probe.measure()


def _accuracy(log_odds: list[float]) -> Estimate:
    return wilson_interval(sum(odds > 0 for odds in log_odds), len(log_odds))


def _from_difference(pair: RenderedPair) -> tuple[RenderedText, RenderedText]:
    """Both answers, scored from the first token in which they differ.

    If one answer is the beginning of the other, they are scored from the last token that both have, because each needs
    a token to score.
    """
    right, wrong = pair.positive.ids, pair.negative.ids
    shortest = min(len(right), len(wrong))
    start = next((n for n in range(shortest) if right[n] != wrong[n]), shortest - 1)
    return RenderedText(right, start), RenderedText(wrong, start)
