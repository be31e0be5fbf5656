"""Measures vectors on one split of the pairs that did not make them: log-odds, costs and answers."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.chat.conversations import as_messages, prompt_key
from rotalabs_steer.datasets.rendering import render_pair
from rotalabs_steer.generation.continuation import generate_texts, spoken
from rotalabs_steer.judging.scoring import judge_texts
from rotalabs_steer.measures.propensity import pair_propensities
from rotalabs_steer.measures.whole_answers import share_broken
from rotalabs_steer.steering.injection import ActivationInjector
from rotalabs_steer.tuning.candidates import Answers, JudgedTexts
from rotalabs_steer.tuning.curves import LayerCurve
from rotalabs_steer.tuning.safe_range import MOST_MORE_BROKEN, Bound, SafeRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from rotalabs_steer.chat.conversations import Prompt
    from rotalabs_steer.datasets.pairs import ContrastPair
    from rotalabs_steer.judging.scoring import Judge
    from rotalabs_steer.measures.coherence import Calibration, CoherenceProbe
    from rotalabs_steer.vectors import SteeringVector


_REDUCTION = 0.8
_LEAST_SHARE = 0.2
"""Of the strength that spends the budget. Answers that are broken at less are not mended by still less."""


class SplitMeasurer:
    """Measures any number of vectors on one split. The unsteered model is measured once for all of them.

    Args:
        prompts: how many different prompts of the pairs the model answers, each with its system message.
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
        asked = {(prompt_key(pair.prompt), pair.system): _prompt_of(pair) for pair in pairs}
        self._prompts = tuple(asked.values())[:prompts]
        self._max_new_tokens = max_new_tokens

    def curve(
        self,
        vector: SteeringVector,
        strength: float,
        fractions: Sequence[float],
        calibration: Calibration | None = None,
    ) -> LayerCurve:
        """The log-odds of the pairs, and the cost on neutral text, at fractions of a strength.

        Args:
            fractions: in rising order, with −1, 0 and 1 among them.
            calibration: of that strength, whose costs are not measured again.
        """
        propensities = {0.0: self._unsteered_propensities}
        costs = {0.0: self._probe.unsteered}
        if calibration is not None:
            costs |= {-1.0: calibration.costs[0], 1.0: calibration.costs[1]}
        injector = ActivationInjector(self._model, [vector])
        with injector:
            for fraction in fractions:
                injector.strength = fraction * strength
                if fraction not in propensities:
                    propensities[fraction] = pair_propensities(self._model, self.pairs)
                if fraction not in costs:
                    costs[fraction] = self._probe.measure()
        return LayerCurve(
            vector.layer_index,
            strength,
            tuple(fractions),
            torch.stack([propensities[fraction] for fraction in fractions]),
            tuple(costs[fraction] for fraction in fractions),
        )

    def answers(self, vector: SteeringVector, strength: float, judge: Judge) -> Answers:
        """Greedy answers to the prompts at minus the calibrated strength, unsteered, and at plus that strength."""
        minus, plus = self._answer(vector, -strength, strength)
        texts = {-1.0: minus, 0.0: self._unsteered_answers, 1.0: plus}
        rows = (JudgedTexts(sign, written, judge_texts(judge, written)) for sign, written in texts.items())
        return Answers(self._prompts, tuple(rows))

    def safe_range(self, vector: SteeringVector, start: float, budget: float) -> SafeRange:
        """How strongly each sign of a vector may steer.

        Args:
            start: a first guess at a strength that spends the budget.
            budget: nats of KL on neutral text per token, for each sign by itself.
        """
        injector = ActivationInjector(self._model, [vector])
        largest = {sign: self._probe.calibrate(injector, start, budget, (sign,)).strength for sign in (-1.0, 1.0)}
        before, shares = share_broken(self._unsteered_answers), dict.fromkeys(largest, 1.0)
        while True:
            answers = self._answer(vector, *(sign * shares[sign] * strength for sign, strength in largest.items()))
            broken = dict(zip(largest, map(share_broken, answers), strict=True))
            too_many = [sign for sign in largest if broken[sign] > before + MOST_MORE_BROKEN]
            too_many = [sign for sign in too_many if shares[sign] >= _LEAST_SHARE]
            if not too_many:
                break
            for sign in too_many:
                shares[sign] *= _REDUCTION

        def bound(sign: float) -> Bound:
            strength = shares[sign] * largest[sign]
            with injector:
                injector.strength = sign * strength
                holds = "budget" if shares[sign] == 1.0 else "answers"
                return Bound(strength, self._probe.cost(), broken[sign], holds)

        return SafeRange(bound(-1.0), bound(1.0), before)

    def _answer(self, vector: SteeringVector, minus: float, plus: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Greedy answers to the prompts at two strengths, in one batch, which takes little longer than one of them."""
        count = len(self._prompts)
        with ActivationInjector(self._model, [vector], [minus] * count + [plus] * count):
            texts = self._generate(self._prompts * 2)
        return texts[:count], texts[count:]

    @cached_property
    def _unsteered_propensities(self) -> torch.Tensor:
        return pair_propensities(self._model, self.pairs)

    @cached_property
    def _unsteered_answers(self) -> tuple[str, ...]:
        return self._generate(self._prompts)

    def _generate(self, prompts: Sequence[Prompt]) -> tuple[str, ...]:
        texts = generate_texts(self._model, self._tokenizer, prompts, self._max_new_tokens)
        return spoken(self._tokenizer, prompts, texts)


def _prompt_of(pair: ContrastPair) -> Prompt:
    """The prompt of a pair's positive side, with its system message."""
    prompt = pair.prompt or ""
    return prompt if pair.system is None else as_messages(prompt, pair.system)
