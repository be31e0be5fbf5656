"""A plan: which interventions act at which layers and tokens, and how strongly. `steering.steps` carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rotalabs_steer.errors import OptionError
from rotalabs_steer.steering.interventions import Add

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from jaxtyping import Float

    from rotalabs_steer.steering.conditions import Condition
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.schedules import Schedule
    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.steering.strengths import Strength


@dataclass(frozen=True, eq=False)
class PlanItem:
    """One intervention on the output of one layer, for the tokens of one scope.

    Attributes:
        behavior: what the vector steers, for messages to people.
    """

    layer_index: int
    intervention: Intervention
    scope: Scope
    strength: Strength
    schedule: Schedule | None = None
    condition: Condition | None = None
    behavior: str = ""

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers at which something is done or looked at."""
        return (self.layer_index,) if self.condition is None else (self.condition.layer_index, self.layer_index)

    @property
    def is_constant_addition(self) -> bool:
        """Whether it adds the same vector to every token of its scope, now and later."""
        plain = self.schedule is None and self.condition is None and isinstance(self.strength, float)
        return plain and isinstance(self.intervention, Add) and not self.intervention.vector.requires_grad


Plan = tuple[PlanItem, ...]


def constant_additions(items: Iterable[PlanItem], carrier: str) -> dict[int, Float[torch.Tensor, " hidden"]]:
    """The vector that the items add to every token of each layer, in fp32.

    Biases and other engines cannot do anything else.

    Args:
        carrier: the subject of the error message: "llama.cpp", "A bias".

    Raises:
        OptionError: an item does anything else.
    """
    sums: dict[int, torch.Tensor] = {}
    for item in items:
        reasons = {
            f"only adds, and the intervention is {type(item.intervention).__name__}": not isinstance(
                item.intervention, Add
            ),
            f"adds to every token, and the scope is {item.scope!r}": item.scope != "all",
            "has one strength for all rows": not isinstance(item.strength, float),
            "does the same at every token: it knows no schedule": item.schedule is not None,
            "does the same for every prompt: it knows no condition": item.condition is not None,
        }
        for reason, applies in reasons.items():
            if applies:
                raise OptionError(f"{carrier} {reason}. Steer the transformers model with an injector for that.")
        assert isinstance(item.strength, float)
        delta = item.intervention.vector.detach().float().cpu() * item.strength
        sums[item.layer_index] = sums[item.layer_index] + delta if item.layer_index in sums else delta
    return sums
