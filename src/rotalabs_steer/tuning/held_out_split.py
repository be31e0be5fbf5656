"""A split that did not make the vectors: the propensities of its pairs and the answers to its prompts."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from rotalabs_steer.chat.conversations import as_messages, prompt_key
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.generation.continuation import generate_texts, spoken
from rotalabs_steer.judging.scoring import judge_texts
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.tuning.candidates import Answers, JudgedTexts
from rotalabs_steer.tuning.curves import FRACTIONS, LayerCurve, measure_curve

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.datasets.pairs import ContrastPair
    from rotalabs_steer.judging.scoring import Judge
    from rotalabs_steer.measures.coherence import Calibration, CoherenceProbe
    from rotalabs_steer.vectors import SteeringVector


class HeldOut:
    """The pairs and prompts of a split on a model. The unsteered model is measured once.

    Args:
        prompts: how many of the pairs' prompts the model answers, each with its system message.
        max_new_tokens: the maximum number of new tokens in each answer.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        probe: CoherenceProbe,
        pairs: Sequence[ContrastPair],
        prompts: int,
        max_new_tokens: int,
    ) -> None:
        self._model, self._tokenizer, self._probe = model, tokenizer, probe
        self.pairs = [render_pair(tokenizer, pair) for pair in pairs]
        asked = {(prompt_key(pair.prompt), pair.system): _asked(pair) for pair in pairs}
        self._prompts = list(asked.values())[:prompts]
        self._max_new_tokens = max_new_tokens
        self._unsteered_propensities: torch.Tensor | None = None

    def curve(
        self, vector: SteeringVector, calibration: Calibration, fractions: Sequence[float] = FRACTIONS
    ) -> LayerCurve:
        """The log-odds of the pairs, and the cost, by strength."""
        known = self._unsteered_propensities
        curve = measure_curve(self._model, self.pairs, self._probe, vector, calibration, fractions, known)
        self._unsteered_propensities = curve.at(0.0)
        return curve

    def answers(self, vector: SteeringVector, unit: float, judge: Judge) -> Answers:
        """Greedy answers to the prompts at −1, 0 and +1 units of strength; both signs in one batch."""
        count = len(self._prompts)
        with ActivationInjector(self._model, [vector], [-unit] * count + [unit] * count):
            steered = self._generate(times=2)
        texts = {-1.0: steered[:count], 0.0: self._unsteered_answers, 1.0: steered[count:]}
        rows = (JudgedTexts(sign, written, judge_texts(judge, written)) for sign, written in texts.items())
        return Answers(tuple(self._prompts), tuple(rows))

    @cached_property
    def _unsteered_answers(self) -> tuple[str, ...]:
        return self._generate()

    def _generate(self, times: int = 1) -> tuple[str, ...]:
        prompts = self._prompts * times
        texts = generate_texts(self._model, self._tokenizer, prompts, self._max_new_tokens)
        return spoken(self._tokenizer, prompts, texts)


def _asked(pair: ContrastPair) -> Prompt:
    """What the positive side of a pair answers, with its system message."""
    prompt = pair.prompt or ""
    return prompt if pair.system is None else as_messages(prompt, pair.system)
