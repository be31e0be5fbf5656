"""The strengths that an injector holds, and how they change while it steers."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rotalabs_steer.errors import SteeringError
from rotalabs_steer.steering.strengths import check_strength

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.steering.strengths import Strength

# Two threads may change two behaviours at once. Without the lock, one could put the other's old strength back in force.
_CHANGING = threading.RLock()


class HeldStrengths(ABC):
    """The strengths of an injector, by the name that its vectors go by."""

    _strengths: Mapping[str, Strength]

    @abstractmethod
    def _put_in_force(self) -> None:
        """Makes the present strengths act. Raises a `SteeringError` if they cannot act."""

    def _change_strength(self, name: str, strength: float | Sequence[float]) -> None:
        """Changes one strength, which acts at once. After an error, all strengths are what they were."""
        checked = check_strength(strength)
        with _CHANGING:
            before = self._strengths
            self._strengths = {**before, name: checked}
            try:
                self._put_in_force()
            except SteeringError:
                self._strengths = before
                raise


class OneStrength(HeldStrengths):
    """One strength for all vectors, which go by the name ""."""

    @property
    def strength(self) -> Strength:
        """Multiplier of every vector; assigning it acts at once, also while attached."""
        return self._strengths[""]

    @strength.setter
    def strength(self, value: float | Sequence[float]) -> None:
        self._change_strength("", value)


class StrengthByBehavior(HeldStrengths):
    """A strength for each behaviour."""

    @property
    def strengths(self) -> dict[str, Strength]:
        """A copy of the strengths by behaviour."""
        return dict(self._strengths)

    def set_strength(self, behavior: str, strength: float | Sequence[float]) -> None:
        """Changes one behaviour's strength; acts at once, also while attached. KeyError for an unknown behaviour."""
        self.get_strength(behavior)
        self._change_strength(behavior, strength)

    def get_strength(self, behavior: str) -> Strength:
        """The present strength of a behaviour. KeyError for an unknown one."""
        if behavior not in self._strengths:
            raise KeyError(f"No vectors for behaviour {behavior!r}; there are {list(self._strengths)}.")
        return self._strengths[behavior]
