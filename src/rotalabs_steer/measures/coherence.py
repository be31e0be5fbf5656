"""What steering costs: how far it moves the model's predictions on text that has nothing to do with the behaviour.

The cost is KL(unsteered ‖ steered) per token, in nats, on short neutral passages. It grows roughly with the square of
the strength, so the strength that spends a given budget is usually found in a few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import kl_div, nll_loss

from rotalabs_steer.arguments import list_of
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.neutral import neutral_passages
from rotalabs_steer.errors import ActivationError, DatasetError, OptionError
from rotalabs_steer.model.batching import padded_batch
from rotalabs_steer.model.inference import evaluating
from rotalabs_steer.steering.plain_model import unsteered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from rotalabs_steer.steering.injection import ActivationInjector

DEFAULT_BUDGET = 0.2
"""Nats per token. At this cost a 135M model still writes fluently. All results in the documentation use it."""

_TOLERANCE = 0.05
_MOST_STEPS = 60
_MOST_STEPS_OUTWARDS = 16
_NARROWEST = 1e-4
"""If the logarithms of two strengths differ by less, the cost jumps over the budget between them."""

_NO_NEXT_TOKEN = -1
_ROWS_AT_ONCE = 64
"""Predictions are compared in parts: with a vocabulary of 50,000 a part takes 13 MB, and all of them 150 MB."""


@dataclass(frozen=True)
class CoherenceCost:
    """What steering costs on neutral text.

    Attributes:
        kl: KL(unsteered ‖ steered), in nats per token.
        perplexity: the steered model's perplexity on the text.
    """

    kl: float
    perplexity: float


@dataclass(frozen=True)
class Calibration:
    """The strength that spends a budget, and what was measured there.

    Attributes:
        costs: the cost for each sign, minus before plus. Their mean KL is the budget, to within 5 %.
    """

    strength: float
    costs: tuple[CoherenceCost, ...]


class CoherenceProbe:
    """Compares a steered model's predictions on neutral text with the unsteered ones, which it keeps.

    Args:
        passages: neutral texts. The default is the package's own.
        max_tokens: longer passages are cut to this number of tokens.

    Raises:
        DatasetError: there is no passage, or one has fewer than two tokens.
        ActivationError: the model's predictions on neutral text are not finite.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, passages: Sequence[str] | None = None, max_tokens: int = 32
    ) -> None:
        self._model = model
        chat = ChatTokenizer.of(tokenizer)
        passages = neutral_passages() if passages is None else list_of("passages", passages)
        texts = [chat.ids(text, special=True)[:max_tokens] for text in passages]
        if not texts or min(map(len, texts)) < 2:
            raise DatasetError(
                f"The cost on neutral text needs passages of at least two tokens each; there are {len(texts)}, of "
                f"{sorted(map(len, texts))} tokens."
            )
        batch = padded_batch(model, list(range(len(texts))), texts)
        self._inputs, self._slots = batch.inputs, torch.cat(batch.slots)
        self._next = torch.tensor([token for text in texts for token in [*text[1:], _NO_NEXT_TOKEN]])
        with unsteered(model):
            logits = self._logits()
        self._reference = logits.log_softmax(dim=-1)
        self.unsteered = self._cost_of(logits)

    def cost(self) -> float:
        """KL(unsteered ‖ model as it is steered now), in nats per token."""
        return self.measure().kl

    def measure(self) -> CoherenceCost:
        """The cost of the model as it is steered now.

        Raises:
            ActivationError: the model's predictions are not finite.
        """
        return self._cost_of(self._logits())

    def _cost_of(self, steered: torch.Tensor) -> CoherenceCost:
        divergence, likelihood = 0.0, 0.0
        targets = self._next.to(self._reference.device)
        parts = (torch.split(tensor, _ROWS_AT_ONCE) for tensor in (steered, self._reference, targets))
        for logits, reference, followed_by in zip(*parts, strict=True):
            log_probs = logits.log_softmax(dim=-1)
            divergence += float(kl_div(log_probs, reference, log_target=True, reduction="sum"))
            likelihood -= float(nll_loss(log_probs, followed_by, reduction="sum", ignore_index=_NO_NEXT_TOKEN))
        if not math.isfinite(divergence) or not math.isfinite(likelihood):
            raise ActivationError(
                "The model's predictions on neutral text are NaN or infinite, so their cost cannot be measured. Load "
                "the model in float32 or bfloat16 (float16 overflows on some models), or use a smaller strength."
            )
        followed = int((self._next != _NO_NEXT_TOKEN).sum())
        return CoherenceCost(divergence / len(self._next), math.exp(-likelihood / followed))

    def calibrate(
        self,
        injector: ActivationInjector,
        start: float,
        budget: float = DEFAULT_BUDGET,
        signs: Sequence[float] = (-1.0, 1.0),
    ) -> Calibration:
        """Finds the strength whose cost is the budget. The injector keeps its own strength.

        Args:
            start: a first guess of the strength.
            signs: the cost is the mean over these; by default over both.

        Raises:
            OptionError: no strength costs the budget to within 5 %. The message gives the largest measured cost.
        """
        measured: dict[float, tuple[CoherenceCost, ...]] = {}

        def cost(strength: float) -> float:
            costs = []
            try:
                for sign in signs:
                    injector.strength = sign * strength
                    costs.append(self.measure())
            except ActivationError:  # so strong that the model's numbers overflow, which is not an error of the search
                return math.nan
            measured[strength] = tuple(costs)
            return sum(cost.kl for cost in costs) / len(costs)

        before = injector.strength
        try:
            with unsteered(self._model), injector.scoped():
                strength = solve_quadratic(cost, start, budget)
        finally:
            injector.strength = before
        return Calibration(strength, measured[strength])

    def _logits(self) -> torch.Tensor:
        with evaluating(self._model):
            logits: torch.Tensor = self._model(**self._inputs).logits
            return logits.flatten(0, 1)[self._slots].float()


def solve_quadratic(cost: Callable[[float], float], start: float, budget: float) -> float:
    """Finds an x > 0 whose cost is the budget to within 5 %, in few steps where the cost is nearly quadratic.

    The search first moves outwards until one x costs less than the budget and a larger x costs more. It then narrows
    this bracket. A cost that is NaN, because the model's numbers overflow, counts as more than the budget.

    Raises:
        OptionError: `start` or `budget` is not a finite number above zero, or no x was found that meets the budget.
    """
    _check_above_zero("start", start)
    _check_above_zero("budget", budget)
    below: tuple[float, float] | None = None  # an x that costs less than the budget, and its cost
    above: tuple[float, float] | None = None  # a larger x that costs more, and its cost
    largest, x = (0.0, start), start
    for step in range(_MOST_STEPS):
        measured = cost(x)
        if abs(measured / budget - 1.0) <= _TOLERANCE:
            return x
        if math.isfinite(measured):
            largest = max(largest, (measured, x))
        if measured < budget:
            below = (x, measured)
        else:
            above = (x, measured)
            if below is not None and below[0] > x:
                below = None
        if step == _MOST_STEPS_OUTWARDS and above is None:
            x = start / 4  # no larger x costs enough, but the cost may rise and fall again below the start
        elif below is None or above is None:
            x *= _outwards(measured, budget, step)
        elif abs(math.log(above[0] / below[0])) < _NARROWEST:
            break
        else:
            x = _between(below, above, budget, halve=step % 2 == 0)
        if not 0 < x < math.inf:
            break
    raise OptionError(
        f"No strength costs the coherence budget of {budget:g} nats per token to within {_TOLERANCE:.0%}: the largest "
        f"cost that could be measured is {largest[0]:.3g}, at strength {largest[1]:.3g}"
        + (f", and beyond strength {above[0]:.3g} the cost is {above[1]:.3g}" if above is not None else "")
        + ". Choose another budget, another layer or another vector."
    )


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise OptionError(f"The {name} of a calibration is {value!r}; it must be a finite number above zero.")


def _outwards(measured: float, budget: float, step: int) -> float:
    """The factor of the next step while all costs so far are on one side of the budget."""
    # The square law is right near the budget. Where two steps of it did not get across, it does not hold here.
    if step > 1 or not math.isfinite(measured) or measured <= 0:
        return 4.0 if measured < budget and step < _MOST_STEPS_OUTWARDS else 0.25
    return min(max(math.sqrt(budget / measured), 1 / 16), 16.0)


def _between(below: tuple[float, float], above: tuple[float, float], budget: float, *, halve: bool) -> float:
    """The next x inside the bracket, chosen on a logarithmic scale.

    It follows the power law through both ends, which is fast on smooth costs, or halves the bracket, which also
    succeeds where the cost jumps.
    """
    share = 0.5
    if not halve and below[1] > 0 and math.isfinite(above[1]):
        share = math.log(budget / below[1]) / math.log(above[1] / below[1])
    return math.exp((1 - share) * math.log(below[0]) + share * math.log(above[0]))
