"""What steering costs: how far it moves the model's predictions on text that has nothing to do with the behaviour.

The cost is KL(unsteered ‖ steered) per token, in nats, on short neutral passages. It grows about with the square of the
strength, so the strength that spends a given budget is found in a few steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div

from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.extraction.forward_pass import evaluating
from rotalabs_steer.text_batches import padded_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rotalabs_steer.injection import ActivationInjector

DEFAULT_BUDGET = 0.2
"""Nats per token. At this cost a 135M model still writes fluently; the findings of the docs use it throughout."""

_STEPS = 4
_TOLERANCE = 0.05


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
        texts = [tokenizer(text)["input_ids"][:max_tokens] for text in passages or neutral_passages()]
        self._batch = padded_batch(model, list(range(len(texts))), texts)
        self._slots = torch.cat(self._batch.slots)
        self._reference = self._log_probs()

    def cost(self) -> float:
        """KL(unsteered ‖ model as it is steered now), nats per token."""
        divergence = kl_div(self._log_probs(), self._reference, log_target=True, reduction="batchmean")
        return float(divergence)

    def strength_at(self, injector: ActivationInjector, start: float, budget: float = DEFAULT_BUDGET) -> float:
        """The strength at which the injector's cost, as the mean of both signs, is the budget. Leaves it as it was.

        Args:
            start: a first guess.
        """

        def cost(strength: float) -> float:
            total = 0.0
            for sign in (1.0, -1.0):
                injector.strength = sign * strength
                total += self.cost()
            return total / 2

        before = injector.strength
        try:
            with injector:
                return solve_quadratic(cost, start, budget)
        finally:
            injector.strength = before

    def _log_probs(self) -> torch.Tensor:
        with evaluating(self._model):
            logits: torch.Tensor = self._model(**self._batch.inputs).logits.flatten(0, 1)
            return logits[self._slots].float().log_softmax(dim=-1)


def solve_quadratic(cost: Callable[[float], float], start: float, budget: float) -> float:
    """The x > 0 where an increasing cost, near to quadratic, meets a budget to within 5 %.

    Each step follows the square law from the last point, held inside the bracket known so far.
    """
    low, high, x = 0.0, float("inf"), start
    for _ in range(_STEPS):
        measured = cost(x)
        if abs(measured / budget - 1.0) <= _TOLERANCE:
            break
        low, high = (x, high) if measured < budget else (low, x)
        guess = x * min(max((budget / max(measured, 1e-9)) ** 0.5, 0.25), 4.0)
        x = guess if low < guess < high else (low + high) / 2
    return x
