"""The plan of a forward call: which interventions act where, and how strongly.

A plan is an immutable tuple of items. Before it runs, the items are grouped into steps by layer; constant additions to
the same tokens of one layer are summed into one step, so ten behaviours cost what one costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from rotalabs_steer.errors import OptionError, PositionError, VectorError
from rotalabs_steer.ordinary_numbers import as_real, plain_value
from rotalabs_steer.steering.interventions import Add

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from rotalabs_steer.model.positions import ForwardCall, Scope
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.schedules import Schedule

Strength = float | tuple[float, ...]
"""One number for every row of a batch, or one for each row."""


class Condition(Protocol):
    """What decides for each row of a batch, from its prompt, whether steering acts; see `steering.conditions`."""

    @property
    def layer_index(self) -> int:
        """The layer whose output it looks at."""
        ...

    def decide(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], prompt: torch.Tensor | bool
    ) -> Bool[torch.Tensor, " batch"]:
        """Whether steering acts on each row; `prompt` marks the prompt's tokens."""
        ...


@dataclass(frozen=True, eq=False)
class PlanItem:
    """One intervention on the output of one layer, for the tokens of one scope."""

    layer_index: int
    intervention: Intervention
    scope: Scope
    strength: Strength
    schedule: Schedule | None = None
    condition: Condition | None = None

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


class Step(Protocol):
    """Something done at a layer when it has run."""

    @property
    def is_addition(self) -> bool:
        """Whether it adds a constant, so that gradients pass it unchanged."""
        ...

    @property
    def is_trained(self) -> bool:
        """Whether its vector requires gradients."""
        ...

    def apply(
        self, hidden: Float[torch.Tensor, "batch seq hidden"], call: ForwardCall
    ) -> Float[torch.Tensor, "batch seq hidden"]:
        """The hidden state after the step; the very same tensor where nothing is to be done."""
        ...


Steps = Mapping[int, Sequence[Step]]


class AddStep:
    """Adds one vector: the sum of all constant additions to these tokens of this layer.

    The vector is cast once for each dtype and device. One slot holds the last cast together with what it was made for,
    and is replaced in one assignment, so threads on models of several dtypes or devices never see half of it.
    """

    __slots__ = ("_cast", "delta", "scope")
    is_addition, is_trained = True, False

    def __init__(self, scope: Scope, delta: Float[torch.Tensor, " hidden"]) -> None:
        self.scope = scope
        self.delta = delta
        self._cast = (delta.dtype, delta.get_device(), _cast(delta, delta))

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """`hidden + delta` at the tokens of the scope."""
        dtype, device, cast = self._cast
        if dtype is not hidden.dtype or device != hidden.get_device():
            cast = _cast(self.delta, hidden)
            self._cast = (hidden.dtype, hidden.get_device(), cast)
        selection = call.selections.get(self.scope)  # what `select` does first: this runs for every token
        if selection is None:
            selection = call.select(self.scope)
        if selection is True:
            return hidden + cast
        if selection is False:
            return hidden
        return torch.addcmul(hidden, selection.to(hidden.device, hidden.dtype).unsqueeze(-1), cast)


@dataclass(frozen=True, eq=False)
class InterventionStep:
    """Any intervention, at strengths that may depend on row, token and condition."""

    item: PlanItem
    is_addition: bool = field(default=False, init=False)
    _moved: dict[torch.device, Intervention] = field(default_factory=dict, repr=False)

    @property
    def is_trained(self) -> bool:
        """Whether its vector requires gradients."""
        return self.item.intervention.vector.requires_grad

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """The intervention, computed in fp32, at the tokens whose strength is not zero."""
        selection = call.select(self.item.scope)
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
        if intervention.vector.requires_grad:  # it may change after each step of an optimiser, so no copy is kept
            return dataclasses.replace(intervention, vector=intervention.vector.to(device))  # type: ignore[type-var]
        if device not in self._moved:
            moved = dataclasses.replace(intervention, vector=intervention.vector.to(device))  # type: ignore[type-var]
            self._moved[device] = moved
        return self._moved[device]


@dataclass(frozen=True, eq=False)
class DecideStep:
    """Decides a condition for each row, when the prompt passes its layer, and remembers it for the generation."""

    condition: Condition
    is_addition: bool = field(default=True, init=False)
    is_trained: bool = field(default=False, init=False)

    def apply(self, hidden: torch.Tensor, call: ForwardCall) -> torch.Tensor:
        """Leaves the hidden state alone."""
        if self.condition not in call.memory:
            prompt = call.select("prompt")
            if prompt is False or call.offset > 0 or call.offset + call.columns < call.prompt_columns:
                raise PositionError(
                    "A condition is decided on the whole prompt, but this call holds only a part of it (chunked "
                    "prefill, a cache that holds its beginning, or decoding by hand). Use model.generate without "
                    "prefill_chunk_size and without a cache of earlier tokens."
                )
            call.memory[self.condition] = self.condition.decide(hidden, prompt)
        return hidden


def check_strength(strength: float | Sequence[float]) -> Strength:
    """The strength as a float, or as a tuple of one float a row.

    Args:
        strength: a number, or a list of them; numbers and arrays of numpy and torch count as well.

    Raises:
        OptionError: it is not made of finite numbers.
    """
    given = plain_value(strength)
    rows = given if isinstance(given, (list, tuple)) else (given,)
    if not rows:
        raise OptionError("The list of strengths is empty: give one for each row of the batch.")
    numbers = [as_real(row) for row in rows]
    checked = tuple(number for number in numbers if number is not None)
    if len(checked) < len(rows):
        raise OptionError(
            f"Strength {rows[numbers.index(None)]!r} is not a finite number. 0 is unsteered, 1 the vector as stored."
        )
    return checked if given is rows else checked[0]


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
            steps.setdefault(item.condition.layer_index, []).insert(0, DecideStep(item.condition))
        if not any(item.strength if isinstance(item.strength, tuple) else (item.strength,)):
            continue
        at_layer = steps.setdefault(item.layer_index, [])
        if not item.is_constant_addition:
            at_layer.append(InterventionStep(item))
            sums.pop(item.layer_index, None)
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


def constant_additions(items: Iterable[PlanItem], carrier: str) -> dict[int, Float[torch.Tensor, " hidden"]]:
    """What the items add to every token, summed by layer, in fp32: all that weights and other engines can carry.

    Args:
        carrier: what is to carry it, for the message: "llama.cpp", "A bias".

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


def _cast(delta: Float[torch.Tensor, " hidden"], hidden: torch.Tensor) -> Float[torch.Tensor, " hidden"]:
    """What is added, in the dtype and on the device of the hidden state.

    Raises:
        VectorError: the dtype cannot hold it: a number becomes infinite, or all of them zero.
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
    """One strength a row. Beams and several sequences a prompt repeat each prompt's strength."""
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
