"""What steering costs: how far it moves the model's predictions on text that has nothing to do with the behaviour.

The cost is KL(unsteered ‖ steered) per token, in nats, on short neutral passages. It grows about with the square of the
strength, so the strength that spends a given budget is found in a few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div, nll_loss

from rotalabs_steer.attachment import unsteered
from rotalabs_steer.datasets.chat_tokenizer import ChatTokenizer
from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.evaluation.repeated_calls import RepeatedCall
from rotalabs_steer.extraction.forward_pass import evaluating
from rotalabs_steer.text_batches import padded_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rotalabs_steer.injection import ActivationInjector

DEFAULT_BUDGET = 0.2
"""Nats per token. At this cost a 135M model still writes fluently; the findings of the docs use it throughout."""

_STEPS = 6
_TOLERANCE = 0.05
_NOTHING = -1  # stands where no token follows
_ROWS_AT_ONCE = 64
"""Predictions are compared in parts: at a vocabulary of 50,000 these take 13 MB instead of 150."""


@dataclass(frozen=True)
class CoherenceCost:
    """What neutral text says of a steered model.

    Attributes:
        kl: KL(unsteered ‖ steered), nats per token.
        perplexity: of the text itself.
    """

    kl: float
    perplexity: float


@dataclass(frozen=True)
class Calibration:
    """The strength that spends a budget, and what was measured there.

    Attributes:
        costs: at minus and at plus that strength; their mean KL is the budget, to within 5 %.
    """

    strength: float
    costs: tuple[CoherenceCost, CoherenceCost]


class CoherenceProbe:
    """Holds the unsteered predictions on neutral text, to compare steered ones with.

    Args:
        passages: neutral texts; those of the package by default.
        max_tokens: passages are cut to this length.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, passages: Sequence[str] | None = None, max_tokens: int = 32
    ) -> None:
        self._model = model
        chat = ChatTokenizer.of(tokenizer)
        texts = [chat.ids(text, special=True)[:max_tokens] for text in passages or neutral_passages()]
        batch = padded_batch(model, list(range(len(texts))), texts)
        self._call, self._slots = RepeatedCall(model, batch.inputs), torch.cat(batch.slots)
        self._next = torch.tensor([token for text in texts for token in [*text[1:], _NOTHING]])
        with unsteered(model):
            self._reference = self._logits().log_softmax(dim=-1)
            self.unsteered = self.measure()

    def cost(self) -> float:
        """KL(unsteered ‖ model as it is steered now), nats per token."""
        return self.measure().kl

    def measure(self) -> CoherenceCost:
        """The cost of the model as it is steered now."""
        divergence, likelihood = 0.0, 0.0
        targets = self._next.to(self._reference.device)
        parts = (torch.split(tensor, _ROWS_AT_ONCE) for tensor in (self._logits(), self._reference, targets))
        for logits, reference, followed_by in zip(*parts, strict=True):
            log_probs = logits.log_softmax(dim=-1)
            divergence += float(kl_div(log_probs, reference, log_target=True, reduction="sum"))
            likelihood -= float(nll_loss(log_probs, followed_by, reduction="sum", ignore_index=_NOTHING))
        followed = int((self._next != _NOTHING).sum())
        return CoherenceCost(divergence / len(self._next), math.exp(-likelihood / followed))

    def calibrate(self, injector: ActivationInjector, start: float, budget: float = DEFAULT_BUDGET) -> Calibration:
        """The strength at which the injector's cost, as the mean of both signs, is the budget. Leaves it as it was.

        Args:
            start: a first guess.
        """
        measured: dict[float, tuple[CoherenceCost, CoherenceCost]] = {}

        def cost(strength: float) -> float:
            injector.strength = -strength
            minus = self.measure()
            injector.strength = strength
            measured[strength] = (minus, self.measure())
            return sum(cost.kl for cost in measured[strength]) / 2

        before = injector.strength
        try:
            with unsteered(self._model), injector.scoped():
                strength = solve_quadratic(cost, start, budget)
        finally:
            injector.strength = before
        return Calibration(strength, measured[strength])

    def strength_at(self, injector: ActivationInjector, start: float, budget: float = DEFAULT_BUDGET) -> float:
        """The strength alone; see `calibrate`."""
        return self.calibrate(injector, start, budget).strength

    def _logits(self) -> torch.Tensor:
        with evaluating(self._model):
            return self._call.logits().flatten(0, 1)[self._slots].float()


def solve_quadratic(cost: Callable[[float], float], start: float, budget: float) -> float:
    """The x > 0 where an increasing cost, near to quadratic, meets a budget to within 5 %.

    Each step follows the square law from the last point, held inside the bracket known so far. After a few steps the
    last point measured has to do.
    """
    low, high, x = 0.0, float("inf"), start
    for step in range(_STEPS):
        measured = cost(x)
        if abs(measured / budget - 1.0) <= _TOLERANCE or step == _STEPS - 1:
            break
        low, high = (x, high) if measured < budget else (low, x)
        guess = x * min(max((budget / max(measured, 1e-9)) ** 0.5, 0.25), 4.0)
        x = guess if low < guess < high else (low + high) / 2
    return x
