"""What a plan does at each layer: the items grouped into steps, which change the hidden state one after the other.

Constant additions to the same tokens of one layer are summed into one step, so ten behaviours cost what one costs.

Every step says two things of itself to compiled code: `is_addition`, whether it adds a constant, so that gradients
pass it unchanged; and `is_trained`, whether its vector requires gradients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from rotalabs_steer.errors import OptionError, PositionError, VectorError
from rotalabs_steer.steering.scopes import select

if TYPE_CHECKING:
    from jaxtyping import Float

    from rotalabs_steer.model.positions import ForwardCall
    from rotalabs_steer.steering.conditions import Condition
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.plans import PlanItem
    from rotalabs_steer.steering.schedules import Schedule
    from rotalabs_steer.steering.scopes import Scope


class AddStep:
    """Adds one vector: the sum of all constant additions to these tokens of this layer."""

    __slots__ = ("_cast", "delta", "scope")
    is_addition, is_trained = True, False

    def __init__(self, scope: Scope, delta: Float[torch.Tensor, " hidden"]) -> None:
        self.scope = scope
        self.delta = delta
        # The last cast and what it was made for are one tuple, which is replaced in one assignment: threads that run
        # the model in several dtypes or on several devices never see half of it.
        self._cast = (delta.dtype, delta.get_device(), _cast(delta, delta))

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """`hidden + delta` at the tokens of the scope."""
        dtype, device, cast = self._cast
        if dtype is not hidden.dtype or device != hidden.get_device():
            cast = _cast(self.delta, hidden)
            self._cast = (hidden.dtype, hidden.get_device(), cast)
        selection = call.selections.get(self.scope)  # what `select` does first: this runs for every token
        if selection is None:
            selection = select(call, self.scope)
        if selection is True:
            return hidden + cast
        if selection is False:
            return hidden
        return torch.addcmul(hidden, selection.to(hidden.device, hidden.dtype).unsqueeze(-1), cast)


@dataclass(frozen=True, eq=False)
class InterventionStep:
    """Applies any intervention, at strengths that may depend on row, token and condition."""

    item: PlanItem
    is_addition: bool = field(default=False, init=False)
    _moved: dict[torch.device, Intervention] = field(default_factory=dict, repr=False)

    @property
    def is_trained(self) -> bool:
        """Whether its vector requires gradients."""
        return self.item.intervention.vector.requires_grad

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """The intervention, computed in fp32, at the tokens whose strength is not zero."""
        selection = select(call, self.item.scope)
        if selection is False:
            return hidden
        strength = self._strengths(call, selection, hidden.device)
        changed = self._on(hidden.device)(hidden.float(), strength).to(hidden.dtype)
        if changed.shape != hidden.shape:
            raise OptionError(
                f"The intervention {type(self.item.intervention).__name__} made {list(changed.shape)} of a hidden "
                f"state of shape {list(hidden.shape)}; it must keep the shape."
            )
        return torch.where(strength == 0, hidden, changed)

    def _strengths(
        self, call: ForwardCall, selection: torch.Tensor | bool, device: torch.device
    ) -> Float[torch.Tensor, "#batch #seq 1"]:
        item = self.item
        given = torch.tensor(item.strength if isinstance(item.strength, tuple) else (item.strength,), device=device)
        strength = _for_rows(given, call)[:, None]
        if item.schedule is not None:
            strength = strength * _factors(item.schedule, call.generation_index()).to(device)
        if item.condition is not None:
            strength = strength * call.memory[item.condition].to(device)[:, None]
        if isinstance(selection, torch.Tensor):
            strength = strength * selection.to(device)
        return strength.unsqueeze(-1)

    def _on(self, device: torch.device) -> Intervention:
        intervention = self.item.intervention
        if intervention.vector.device == device:
            return intervention
        moved = self._moved.get(device)
        if moved is None:
            moved = dataclasses.replace(intervention, vector=intervention.vector.to(device))  # type: ignore[type-var]
            if not intervention.vector.requires_grad:  # an optimiser changes it, so its copy would soon be out of date
                self._moved[device] = moved
        return moved


@dataclass(frozen=True, eq=False)
class DecideStep:
    """Decides a condition for each row when the prompt passes its layer, and keeps the decision for the generation."""

    condition: Condition
    is_addition: bool = field(default=True, init=False)
    is_trained: bool = field(default=False, init=False)

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """Leaves the hidden state unchanged."""
        if self.condition not in call.memory:
            prompt = select(call, "prompt")
            if prompt is False or call.offset > 0 or call.offset + call.columns < call.prompt_columns:
                raise PositionError(
                    "A condition is decided on the whole prompt, but this call holds only a part of it (chunked "
                    "prefill, a cache that holds its beginning, or decoding by hand). Use model.generate without "
                    "prefill_chunk_size and without a cache of earlier tokens."
                )
            call.memory[self.condition] = self.condition.decide(hidden, prompt)
        return hidden


Step = AddStep | InterventionStep | DecideStep
Steps = Mapping[int, Sequence[Step]]
"""The steps at each layer; what `apply` returns is the very same tensor where a step does nothing."""


def steps_by_layer(items: Iterable[PlanItem]) -> Steps:
    """The steps that carry out the items, in their order.

    Items of strength 0 leave no step that changes anything, so the model is bit for bit unsteered; their conditions are
    decided all the same, since the strength may be raised in the middle of a generation. Constant additions are summed
    as long as nothing comes between them that does not commute with them.
    """
    steps: dict[int, list[Step]] = {}
    sums: dict[int, dict[Scope, AddStep]] = {}
    conditions: set[Condition] = set()
    for item in items:
        if item.condition is not None and item.condition not in conditions:
            conditions.add(item.condition)
            # In front of what steers the same layer: a condition is decided on the layer's own output.
            steps.setdefault(item.condition.layer_index, []).insert(0, DecideStep(item.condition))
        if not any(item.strength if isinstance(item.strength, tuple) else (item.strength,)):
            continue
        at_layer = steps.setdefault(item.layer_index, [])
        if not item.is_constant_addition:
            at_layer.append(InterventionStep(item))
            sums.pop(item.layer_index, None)  # later additions must act after it, so they are a new sum
            continue
        assert isinstance(item.strength, float)
        delta = item.intervention.vector * item.strength
        running = sums.setdefault(item.layer_index, {})
        before = running.get(item.scope)
        if before is None:
            running[item.scope] = AddStep(item.scope, delta)
            at_layer.append(running[item.scope])
        else:
            running[item.scope] = AddStep(item.scope, before.delta + delta.to(before.delta.device))
            at_layer[at_layer.index(before)] = running[item.scope]
    return steps


def _cast(delta: Float[torch.Tensor, " hidden"], hidden: torch.Tensor) -> Float[torch.Tensor, " hidden"]:
    """What is added, in the dtype and on the device of the hidden state.

    Raises:
        VectorError: the dtype cannot hold it: a number becomes infinite, or all numbers become zero.
    """
    cast = delta.to(hidden.device, hidden.dtype)
    if cast.is_meta or (bool(torch.isfinite(cast).all()) and bool(cast.any()) == bool(delta.any())):
        return cast
    raise VectorError(
        f"A vector times its strength, of largest number {float(delta.abs().max()):.3g}, does not fit into "
        f"{hidden.dtype}: it becomes infinite or zero there. Use another strength, or load the model in float32."
    )


def _factors(schedule: Schedule, index: torch.Tensor) -> torch.Tensor:
    factors: object = schedule(index)
    if not isinstance(factors, torch.Tensor) or factors.shape != index.shape or not bool(torch.isfinite(factors).all()):
        raise OptionError(
            f"The schedule {schedule!r:.80} returned {factors!r:.80}; it must give a finite factor for each of the "
            f"{len(index)} token indices it is called with, as a tensor."
        )
    return factors


def _for_rows(given: torch.Tensor, call: ForwardCall) -> torch.Tensor:
    """One strength for each row. Beams and several sequences of one prompt repeat the prompt's strength."""
    rows, count = call.batch_size, len(given)
    if count in (1, rows):
        return given
    half = rows // 2 if call.is_doubled else rows
    if call.prompts is None or count != call.prompts or half % count:
        if call.prompts in (None, rows):
            raise OptionError(f"{count} strengths were given for a batch of {rows} rows; give one for each row.")
        raise OptionError(f"{count} strengths were given for {call.prompts} prompts; give one for each prompt.")
    strengths = given.repeat_interleave(half // count)
    return torch.cat([strengths, strengths]) if call.is_doubled else strengths
