"""The plan of a forward call: which interventions act where, and how strongly.

A plan is an immutable tuple of items. Before it runs, the items are grouped into steps by layer; additions to the same
tokens of one layer are summed into one step, so ten behaviours cost what one costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import OptionError

if TYPE_CHECKING:
    from jaxtyping import Float

    from rotalabs_steer.interventions import Add


@dataclass(frozen=True)
class PlanItem:
    """One intervention on the output of one layer, for the tokens of one scope."""

    layer_index: int
    intervention: Add
    scope: str
    strength: float


Plan = tuple[PlanItem, ...]


@dataclass(frozen=True, eq=False)
class AddStep:
    """Adds one vector, the sum of all additions to these tokens of this layer."""

    scope: str
    delta: Float[torch.Tensor, " hidden"]
    _casts: dict[tuple[torch.dtype, torch.device], torch.Tensor] = field(default_factory=dict, repr=False)

    def apply(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], selection: torch.Tensor | bool
    ) -> Float[torch.Tensor, "batch seq hidden"]:
        """The hidden state with `delta` added at the selected tokens (True: all of them)."""
        delta = self._casts.get((hidden.dtype, hidden.device))
        if delta is None:
            delta = self._casts.setdefault((hidden.dtype, hidden.device), self.delta.to(hidden.device, hidden.dtype))
        if selection is True:
            return hidden + delta
        assert isinstance(selection, torch.Tensor)
        return torch.addcmul(hidden, selection.to(hidden.device, hidden.dtype).unsqueeze(-1), delta)


Steps = Mapping[int, tuple[AddStep, ...]]


def check_strength(strength: float) -> float:
    """The strength as a float.

    Raises:
        OptionError: it is not a finite number.
    """
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not -1e9 < strength < 1e9:
        raise OptionError(f"Strength {strength!r} is not a finite number. 0 is unsteered, 1 the vector as stored.")
    return float(strength)


def steps_by_layer(items: Iterable[PlanItem]) -> Steps:
    """The steps that carry out the items. Items of strength 0 leave no step: the model is bit for bit unsteered."""
    sums: dict[tuple[int, str], torch.Tensor] = {}
    for item in items:
        if item.strength == 0.0:
            continue
        delta = item.intervention.vector.detach().float() * item.strength
        key = (item.layer_index, item.scope)
        sums[key] = sums[key] + delta.to(sums[key].device) if key in sums else delta
    steps: dict[int, tuple[AddStep, ...]] = {}
    for (layer, scope), delta in sums.items():
        steps[layer] = (*steps.get(layer, ()), AddStep(scope, delta))
    return steps
