"""Steering a model: `ActivationInjector` for vectors at one strength, `MultiVectorInjector` for behaviours.

with ActivationInjector(model, [vector], strength=1.0):
    outputs = model.generate(**inputs)
"""

from __future__ import annotations

import sys
import warnings
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

import torch

from rotalabs_steer.errors import OptionError, SteeringConflictError, SteeringWarning
from rotalabs_steer.steering.acting_layers import acting_vectors, at_layer, sets_by_behavior
from rotalabs_steer.steering.attachment import Attachment, SteeredDecoder
from rotalabs_steer.steering.held_strengths import HeldStrengths, OneStrength, StrengthByBehavior
from rotalabs_steer.steering.interventions import Intervention, make_intervention
from rotalabs_steer.steering.plans import Plan, PlanItem
from rotalabs_steer.steering.scopes import Scope, check_scope
from rotalabs_steer.steering.strengths import check_strength, strengths_by_behavior
from rotalabs_steer.steering.vector_checks import check_condition, check_vectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from torch import nn

    from rotalabs_steer.steering.acting_layers import Vectors
    from rotalabs_steer.steering.conditions import Condition
    from rotalabs_steer.steering.schedules import Schedule
    from rotalabs_steer.steering.strengths import Strength
    from rotalabs_steer.vectors import SteeringVector


_SAME_DIRECTION = 0.9
"""Cosine above which two vectors of one behaviour are taken for the same one, extracted again."""


class SteeringOptions(TypedDict, total=False):
    """How vectors steer: the options that the injectors, `steer` and `SteeredModel` share.

    Attributes:
        scope: which real tokens of each row are steered: "all" (the default); "first"; "last" (the last prompt token
            and every generated one); "prompt"; "generated" (as "last"); a `TokenRange`; or an `AfterMarker`.
        intervention: "add" (the default), "add_keeping_norm", "ablate", "clamp" or "rotate"; or a callable that makes
            an intervention of a vector, such as `lambda v: Clamp(v, value=3.0)`.
        schedule: factor of the strength by index of the generated token.
        condition: steer only rows whose prompt meets it.
        check_model: refuse vectors that were made from another model (the default).
    """

    scope: Scope | None
    intervention: str | Callable[[torch.Tensor], Intervention]
    schedule: Schedule | None
    condition: Condition | None
    check_model: bool


class _Injector(HeldStrengths):
    """What both injectors share: how vectors act, and when."""

    def __init__(
        self,
        model: nn.Module,
        acting: Mapping[str, Sequence[SteeringVector]],
        injection_mode: Scope | None,
        *,
        scope: Scope | None = None,
        intervention: str | Callable[[torch.Tensor], Intervention] = "add",
        schedule: Schedule | None = None,
        condition: Condition | None = None,
        check_model: bool = True,
    ) -> None:
        vectors = [vector for each in acting.values() for vector in each]
        if scope is not None and injection_mode is not None:
            raise OptionError(
                f"scope is {scope!r:.80} and injection_mode is {injection_mode!r:.80}; both name the tokens to steer. "
                "Give scope only."
            )
        given = injection_mode if scope is None else scope
        self.injection_mode = check_scope("all" if given is None else given)
        check_vectors(model, vectors, check_model=check_model)
        if schedule is not None and not callable(schedule):
            raise OptionError(f"schedule is {schedule!r:.80}; it must be a schedule such as StopAfter(20).")
        if condition is not None:
            check_condition(model, condition, vectors)
        self.model = model
        self._acting = [
            (name, vector, make_intervention(intervention, vector.vector))
            for name, each in acting.items()
            for vector in each
        ]
        self._schedule = schedule
        self._condition = condition
        self._attachment: Attachment | None = None
        self._scopes: list[Attachment] = []
        self._entered = 0
        self._stays = False

    @property
    def scope(self) -> Scope:
        """Which tokens are steered: another name of `injection_mode`."""
        return self.injection_mode

    @property
    def attached(self) -> bool:
        """Whether this injector steers the model for every caller now."""
        return self._attachment is not None and self._attachment.is_open

    def attach(self) -> Self:
        """Steers every call of the model from now on, until `detach`. Attaching it again changes nothing.

        If another injector steers the same behaviour at the same layer already, this gives a `SteeringWarning`, because
        both act and their strengths add up. A notebook cell that is run twice is the usual cause.

        Raises:
            SteeringConflictError: another live thread or task steers this model already. Use `scoped()`.
        """
        if self.attached:
            self._check_acts_here()
        else:
            SteeredDecoder.of(self.model).check_free()
            self._warn_of_double_steering()
            self._attachment = self._attach()
        self._stays = True
        return self

    def detach(self) -> None:
        """Leaves the model as it was.

        Raises:
            NotSteeredError: the model ran since `attach`, but its steered layers did not. The vectors are removed all
                the same.
        """
        self._end(check=sys.exc_info()[1] is None)

    def __enter__(self) -> Self:
        if self.attached:
            self._check_acts_here()
        else:
            self._attachment = self._attach()
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0 and not self._stays:
            self._end(check=_is_regular_end(error))

    def _attach(self) -> Attachment:
        return SteeredDecoder.of(self.model).attach(self.model, self._plan())

    def _check_acts_here(self) -> None:
        """Refuses to be entered where `unsteered` hides what was attached before."""
        if self._attachment not in SteeredDecoder.of(self.model).in_force():
            raise SteeringConflictError(
                "This injector is attached already, and `unsteered(model)` hides it in this block. Use `with "
                "injector.scoped():` to steer inside it."
            )

    def _end(self, *, check: bool) -> None:
        attachment, self._attachment, self._stays = self._attachment, None, False
        if attachment is not None:
            attachment.remove(check=check)

    def scoped(self) -> AbstractContextManager[Self]:
        """Steers calls made from this thread or asyncio task only, so that others may steer the model differently.

        In the body of a generator, such as one that streams an answer, it steers the calls of that body until the block
        ends, in whatever thread or context the next piece is asked for. A thread that is started inside the block is
        not steered: open the scope in that thread.

        Raises:
            NotSteeredError: at the end of the block, if the model ran elsewhere but never in the scope.
        """
        return _Scope(self)

    def _warn_of_double_steering(self) -> None:
        mine = self._plan()
        for attachment in SteeredDecoder.of(self.model).in_force():
            for other in attachment.plan:
                if any(_steer_alike(item, other) for item in mine):
                    warnings.warn(
                        f"Another injector steers {other.behavior!r} at layer {other.layer_index} of this model "
                        "already, so both act and their strengths add up. If it is one that a notebook cell left "
                        "behind, take it off with rotalabs_steer.steering_of(model).clear() first.",
                        SteeringWarning,
                        stacklevel=3,
                    )
                    return

    def _plan(self) -> Plan:
        """The plan at the present strengths."""
        return tuple(
            PlanItem(
                vector.layer_index,
                intervention,
                self.injection_mode,
                self._strengths[name],
                self._schedule,
                self._condition,
                vector.behavior,
            )
            for name, vector, intervention in self._acting
        )

    def _put_in_force(self) -> None:
        plan = self._plan()
        for attachment in (*self._scopes, self._attachment):
            if attachment is not None:
                attachment.replace_plan(plan)


def _steer_alike(one: PlanItem, other: PlanItem) -> bool:
    """Whether two items steer the same behaviour at the same layer in about one direction."""
    if (one.behavior, one.layer_index) != (other.behavior, other.layer_index):
        return False
    mine, theirs = (item.intervention.vector.detach().float().cpu() for item in (one, other))
    return bool(torch.cosine_similarity(mine, theirs, dim=0) > _SAME_DIRECTION)


class _Scope(AbstractContextManager[Any]):
    """One use of `injector.scoped()`. A class, because its `__enter__` has to know the frame that opens the block."""

    def __init__(self, injector: _Injector) -> None:
        self._injector = injector
        self._attachment: Attachment | None = None

    def __enter__(self) -> _Injector:
        injector = self._injector
        if self._attachment is not None:
            raise SteeringConflictError("This scope is open already. Make one for each use: `with injector.scoped():`.")
        steered = SteeredDecoder.of(injector.model)
        self._attachment = steered.open_scope(injector.model, injector._plan(), sys._getframe(1))
        injector._scopes.append(self._attachment)
        return injector

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        attachment, self._attachment = self._attachment, None
        assert attachment is not None
        self._injector._scopes.remove(attachment)
        attachment.remove(check=_is_regular_end(error))


def _is_regular_end(error: BaseException | None) -> bool:
    """Whether a block ends without an error, which includes that its generator is closed before its end."""
    return error is None or isinstance(error, GeneratorExit)


class ActivationInjector(_Injector, OneStrength):
    """Adds steering vectors to a model's residual stream while it is attached.

    Args:
        model: a transformers model, or a PEFT model around one.
        vectors: any number of vectors, or vector sets. A set acts at its `acting_layers`. Vectors of one layer add up.
        strength: multiplier of every vector, as `steering.strengths` explains. A list gives each row of a batch its own
            strength; beams and several sequences of one prompt share the prompt's.
        injection_mode: the older name of the option `scope`.
        options: how they steer: `scope`, `intervention`, `schedule`, `condition` and `check_model`; see
            `SteeringOptions`.

    Raises:
        VectorError, LayerError, ModelMismatchError, OptionError: a vector, its layer, model or an option does not fit;
            the model is untouched.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: Vectors | Iterable[Vectors],
        strength: float | Sequence[float] = 1.0,
        injection_mode: Scope | None = None,
        **options: Unpack[SteeringOptions],
    ) -> None:
        self.vectors = acting_vectors(vectors)
        self._strengths = {"": check_strength(strength)}
        super().__init__(model, {"": self.vectors}, injection_mode, **options)


class MultiVectorInjector(_Injector, StrengthByBehavior):
    """Steers several behaviours at once, each with its own strength: `injector["calm"]` is that of "calm", and
    `injector["calm"] = 0.5` changes it at once.

    Args:
        model: a transformers model, or a PEFT model around one.
        vector_sets: a vector set for each behaviour, which acts at its `acting_layers`.
        strengths: the strength of each behaviour, as in `ActivationInjector`; 1.0 by default.
        default_layer: the one layer at which every behaviour acts, instead of the acting layers of its set.
        injection_mode, options: as in `ActivationInjector`.

    Raises:
        LayerError: a set has no vector at `default_layer`.
        VectorError, ModelMismatchError, OptionError: as in `ActivationInjector`.
    """

    def __init__(
        self,
        model: nn.Module,
        vector_sets: Mapping[str, Vectors],
        strengths: Mapping[str, float | Sequence[float]] | None = None,
        injection_mode: Scope | None = None,
        default_layer: int | None = None,
        **options: Unpack[SteeringOptions],
    ) -> None:
        self.vector_sets = sets_by_behavior(vector_sets)
        self.vectors = {name: at_layer(chosen, default_layer).acting for name, chosen in self.vector_sets.items()}
        self._strengths = strengths_by_behavior(self.behaviors, strengths)
        self.default_layer = default_layer
        super().__init__(model, self.vectors, injection_mode, **options)

    @property
    def behaviors(self) -> list[str]:
        """The behaviours that can be steered."""
        return list(self.vector_sets)

    def __getitem__(self, behavior: str) -> Strength:
        return self.get_strength(behavior)

    def __setitem__(self, behavior: str, strength: float | Sequence[float]) -> None:
        self.set_strength(behavior, strength)

    def __iter__(self) -> Iterator[str]:
        return iter(self.behaviors)
