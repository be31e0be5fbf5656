"""How strongly a vector may steer in each direction before it costs too much or breaks the model's answers.

The minus side of a vector often breaks first, so each sign has a bound of its own: the largest strength that stays in
the coherence budget and at which hardly more answers are broken than without steering.
"""

from __future__ import annotations

from dataclasses import dataclass

MOST_MORE_BROKEN = 0.05
"""How much larger the share of broken answers may be than without steering."""


@dataclass(frozen=True)
class Bound:
    """The largest safe strength of one sign.

    Attributes:
        strength: the size of the strength, above zero.
        kl: what it costs on neutral text, in nats per token.
        broken: the share of broken answers at this strength.
        holds: what rules out a larger strength: "budget" or "answers".
    """

    strength: float
    kl: float
    broken: float
    holds: str


@dataclass(frozen=True)
class SafeRange:
    """The bounds of both signs, and the share of broken answers without steering."""

    minus: Bound
    plus: Bound
    broken_unsteered: float

    @property
    def strength(self) -> float:
        """The largest strength that is safe in both directions."""
        return min(self.minus.strength, self.plus.strength)

    def scaled(self, factor: float) -> SafeRange:
        """The bounds of the vector multiplied by `factor`, which needs strengths that are smaller by it."""
        minus, plus = (
            Bound(bound.strength / factor, bound.kl, bound.broken, bound.holds) for bound in (self.minus, self.plus)
        )
        return SafeRange(minus, plus, self.broken_unsteered)

    def __str__(self) -> str:
        return f"−{self.minus.strength:.2g} to +{self.plus.strength:.2g}"
