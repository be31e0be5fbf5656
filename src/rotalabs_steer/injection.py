"""Steering a model: `ActivationInjector` for vectors at one strength, `MultiVectorInjector` for behaviours.

with ActivationInjector(model, [vector], strength=1.0):
    outputs = model.generate(**inputs)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Self

from rotalabs_steer.attachment import Attachment, SteeredModel, check_not_compiled
from rotalabs_steer.decoder import check_layer_indices, hidden_size, model_fingerprint, model_name
from rotalabs_steer.errors import LayerError, ModelMismatchError, OptionError, VectorError
from rotalabs_steer.interventions import Add
from rotalabs_steer.models import find_model_config
from rotalabs_steer.plans import Plan, PlanItem, check_strength
from rotalabs_steer.positions import check_scope
from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from torch import nn


class _Injector(ABC):
    """What both injectors share: a plan, and when it is in force."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._steered = SteeredModel.of(model)
        self._attachment: Attachment | None = None
        self._scoped: list[Attachment] = []
        self._entered = 0

    @abstractmethod
    def _plan(self) -> Plan:
        """The plan at the present strengths."""

    @property
    def attached(self) -> bool:
        """Whether this injector steers the model for every caller now."""
        return self._attachment is not None

    def attach(self) -> Self:
        """Steers every call of the model from now on, until `detach`. Attaching twice is attaching once.

        Raises:
            SteeringConflictError: another live thread or task steers this model already. Use `scoped()`.
            CompiledModelError: the model was compiled before.
        """
        if self._attachment is None:
            self._attachment = self._steered.attach(self._plan())
        return self

    def detach(self) -> None:
        """Leaves the model as it was."""
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def __enter__(self) -> Self:
        self.attach()
        self._entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            self.detach()

    @contextmanager
    def scoped(self) -> Iterator[Self]:
        """Steers calls made from this thread or asyncio task only, so that others may steer the model differently."""
        attachment = self._steered.attach_scoped(self._plan())
        self._scoped.append(attachment)
        try:
            yield self
        finally:
            self._scoped.remove(attachment)
            self._steered.leave_scoped(attachment)

    def _refresh(self) -> None:
        """Puts changed strengths in force at once."""
        plan = self._plan()
        for attachment in (*self._scoped, self._attachment):
            if attachment is not None:
                attachment.plan = plan


class ActivationInjector(_Injector):
    """Adds steering vectors to a model's residual stream while it is attached.

    Args:
        model: a transformers model, or a PEFT model around one.
        vectors: any number; those of one layer add up.
        strength: multiplier of every vector. 0 is bit for bit the unsteered model.
        injection_mode: which real tokens of each row are steered: "all"; "first"; "last" (the last prompt token and
            every generated one); "prompt"; "generated" (as "last").
        check_model: refuse vectors that were made from another model.

    Raises:
        VectorError, LayerError, ModelMismatchError, OptionError: a vector, its layer, model or an option does not fit;
            the model is untouched.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: SteeringVector | Iterable[SteeringVector],
        strength: float = 1.0,
        injection_mode: str = "all",
        *,
        check_model: bool = True,
    ) -> None:
        self.vectors = [vectors] if isinstance(vectors, SteeringVector) else list(vectors)
        if not self.vectors:
            raise VectorError("No vector given: an injector without vectors would silently not steer.")
        check_vectors(model, self.vectors, check_model=check_model)
        self.injection_mode = check_scope(injection_mode)
        self._strength = check_strength(strength)
        super().__init__(model)

    @property
    def strength(self) -> float:
        """Multiplier of every vector; assigning it acts at once, also while attached."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength = check_strength(value)
        self._refresh()

    def _plan(self) -> Plan:
        return tuple(
            PlanItem(vector.layer_index, Add(vector.vector), self.injection_mode, self._strength)
            for vector in self.vectors
        )


class MultiVectorInjector(_Injector):
    """Steers several behaviours at once, each with its own strength.

    Args:
        model: a transformers model, or a PEFT model around one.
        vector_sets: a vector set for each behaviour. One layer of each acts: `default_layer` where given, else the
            layer that tuning chose, else `get_best()`.
        strengths: multiplier by behaviour; 1.0 for those left out.
        injection_mode: as in `ActivationInjector`.
        default_layer: the layer at which every behaviour acts.
        check_model: refuse vectors that were made from another model.

    Raises:
        LayerError: a set has no vector at `default_layer`.
        VectorError, ModelMismatchError, OptionError: as in `ActivationInjector`.
    """

    def __init__(
        self,
        model: nn.Module,
        vector_sets: Mapping[str, SteeringVectorSet],
        strengths: Mapping[str, float] | None = None,
        injection_mode: str = "all",
        default_layer: int | None = None,
        *,
        check_model: bool = True,
    ) -> None:
        if not vector_sets:
            raise VectorError("No vector sets given: an injector without vectors would silently not steer.")
        self.vector_sets = dict(vector_sets)
        self.vectors = {name: _acting(name, chosen, default_layer) for name, chosen in self.vector_sets.items()}
        check_vectors(model, self.vectors.values(), check_model=check_model)
        self._strengths = dict.fromkeys(self.vector_sets, 1.0)
        for behavior, strength in (strengths or {}).items():
            if behavior not in self._strengths:
                raise OptionError(f"Strength for {behavior!r}, but there are vectors for {self.behaviors} only.")
            self._strengths[behavior] = check_strength(strength)
        self.injection_mode = check_scope(injection_mode)
        self.default_layer = default_layer
        super().__init__(model)

    @property
    def behaviors(self) -> list[str]:
        """The behaviours that can be steered."""
        return list(self.vector_sets)

    @property
    def strengths(self) -> dict[str, float]:
        """A copy of the strengths by behaviour."""
        return dict(self._strengths)

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes one behaviour's strength; acts at once, also while attached. KeyError for an unknown behaviour."""
        self.get_strength(behavior)
        self._strengths[behavior] = check_strength(strength)
        self._refresh()

    def get_strength(self, behavior: str) -> float:
        """The present strength of a behaviour. KeyError for an unknown one."""
        if behavior not in self._strengths:
            raise KeyError(f"No vectors for behaviour {behavior!r}; there are {self.behaviors}.")
        return self._strengths[behavior]

    def _plan(self) -> Plan:
        return tuple(
            PlanItem(vector.layer_index, Add(vector.vector), self.injection_mode, self._strengths[behavior])
            for behavior, vector in self.vectors.items()
        )


def check_vectors(model: nn.Module, vectors: Iterable[SteeringVector], *, check_model: bool = True) -> None:
    """Refuses vectors that do not fit the model, before anything is attached."""
    check_not_compiled(model)
    width = hidden_size(model)
    for vector in vectors:
        check_layer_indices(model, [vector.layer_index])
        if vector.dim != width:
            raise VectorError(
                f"The vector of {vector.behavior!r} has {vector.dim} numbers; {model_name(model)} has hidden size "
                f"{width}. It was made from {vector.model_name!r}: extract it from this model."
            )
        if check_model:
            _check_same_model(model, vector)


def _check_same_model(model: nn.Module, vector: SteeringVector) -> None:
    """Compares architectures where extraction recorded one, else names, where both say which model they mean."""
    mine, theirs = model_fingerprint(model), vector.metadata.get("fingerprint")
    if theirs is not None:
        same = theirs == mine
    else:
        known = find_model_config(vector.model_name)
        fits = known is None or (known.num_layers, known.hidden_size) == (mine["num_layers"], mine["hidden_size"])
        named = "/" in vector.model_name or known is not None
        same = fits and (not named or _short(vector.model_name) == _short(model_name(model)))
    if not same:
        raise ModelMismatchError(
            f"The vector of {vector.behavior!r} was made from {vector.model_name!r}, this model is "
            f"{model_name(model)!r}. Extract it from this model, or pass check_model=False if it is meant for it."
        )


def _short(name: str) -> str:
    return PurePath(name).name.lower()


def _acting(behavior: str, vectors: SteeringVectorSet, default_layer: int | None) -> SteeringVector:
    if default_layer is None:
        return vectors.get_best()
    vector = vectors.get(default_layer)
    if vector is None:
        raise LayerError(f"The set of {behavior!r} has no vector at layer {default_layer}; it has {vectors.layers}.")
    return vector
