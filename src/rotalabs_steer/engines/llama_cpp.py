"""llama.cpp through llama-cpp-python, steered by the vectors that steer the transformers model.

llama = Llama("model.gguf", n_ctx=2048)
with LlamaInjector(llama, [vector], strength=1.0):
    llama.create_chat_completion(messages)

llama.cpp holds one vector a layer, which it adds to every token at the output of that layer: no other scope, no other
intervention, and not at layer 0. What it cannot do is refused.
"""

from __future__ import annotations

import ctypes
import warnings
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

import torch

from rotalabs_steer.errors import (
    ArchitectureError,
    LayerError,
    ModelMismatchError,
    OptionError,
    SteeringConflictError,
    VectorError,
    missing_dependency,
)
from rotalabs_steer.files.gguf import check_layers
from rotalabs_steer.steering.acting_layers import acting_vectors, at_layer, sets_by_behavior
from rotalabs_steer.steering.interventions import make_intervention
from rotalabs_steer.steering.plans import PlanItem, constant_additions
from rotalabs_steer.steering.strengths import Strength, check_strength, strengths_by_behavior

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from llama_cpp import Llama

    from rotalabs_steer.steering.acting_layers import Vectors
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

_STEERED: weakref.WeakSet[Any] = weakref.WeakSet()
_KNOWN_TO_ACT: weakref.WeakSet[Any] = weakref.WeakSet()


class _Injector(ABC):
    """What both injectors share: how vectors come into a `Llama` and out of it."""

    def __init__(
        self,
        llama: Llama,
        acting: Mapping[str, Sequence[SteeringVector]],
        injection_mode: Scope,
        intervention: str | Callable[[torch.Tensor], Intervention],
        check_model: bool,
    ) -> None:
        self.llama = llama
        self.injection_mode = injection_mode
        self._library = _llama_cpp()
        self._acting = [
            (name, vector.layer_index, make_intervention(intervention, vector.vector))
            for name, each in acting.items()
            for vector in each
        ]
        self._width: int = self._library.llama_model_n_embd(llama.model)
        self._layers: int = self._library.llama_model_n_layer(llama.model)
        for each in acting.values():
            for vector in each:
                self._check(vector, check_model)
        self._additions()  # what llama.cpp cannot do is an error here, before anything is changed
        self._attached = False
        self._entered = 0

    @abstractmethod
    def _strength_of(self, name: str) -> Strength:
        """The present strength of the vectors that go by a name."""

    @property
    def attached(self) -> bool:
        """Whether the `Llama` is steered now."""
        return self._attached

    def attach(self) -> Self:
        """Steers whatever the `Llama` computes from now on, until `detach`. Attaching twice is attaching once.

        Raises:
            SteeringConflictError: another injector steers this `Llama`.
            ArchitectureError: llama.cpp does not apply control vectors to models of this architecture.
        """
        if not self._attached:
            if self.llama in _STEERED:
                raise SteeringConflictError(
                    "This Llama is steered by another injector, and llama.cpp holds one vector a layer. Detach it "
                    "first, or give all behaviours to one LlamaMultiInjector."
                )
            self._check_acts()
            _STEERED.add(self.llama)
            self._attached = True
            try:
                self._put_in_force()
            except BaseException:
                self.detach()
                raise
        return self

    def detach(self) -> None:
        """Leaves the `Llama` as it was."""
        if self._attached:
            self._attached = False
            _STEERED.discard(self.llama)
            self._set(None)
            self._forget_computed()

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

    def _put_in_force(self) -> None:
        """Gives llama.cpp the vectors at the present strengths."""
        if self._attached:
            self._set(self._additions())
            self._forget_computed()

    def _additions(self) -> dict[int, torch.Tensor]:
        """By layer, what is to be added."""
        additions = constant_additions(
            (
                PlanItem(layer, intervention, self.injection_mode, self._strength_of(name))
                for name, layer, intervention in self._acting
            ),
            "llama.cpp",
        )
        check_layers(additions)
        return additions

    def _set(self, additions: Mapping[int, torch.Tensor] | None) -> None:
        """The control vector of the context; None for none. Layers that are not given get zeros: llama.cpp keeps
        what a layer had before otherwise."""
        set_vector, context = self._library.llama_set_adapter_cvec, self.llama.ctx
        if additions is None or not any(bool(delta.any()) for delta in additions.values()):
            failed = set_vector(context, None, 0, 0, 0, 0)
        else:
            table = torch.zeros(self._layers - 1, self._width)  # the first row is layer 1
            for layer, delta in additions.items():
                table[layer - 1] = delta
            numbers = ctypes.cast(table.data_ptr(), ctypes.POINTER(ctypes.c_float))
            failed = set_vector(context, numbers, table.numel(), self._width, 1, self._layers)
        if failed:
            raise ArchitectureError(f"llama.cpp refused the control vector (code {failed}).")

    def _forget_computed(self) -> None:
        """Makes the next generation compute its whole prompt: what is cached was computed at another strength.

        A generation that is under way goes on from what it has, with the new strength for its further tokens.
        """
        self.llama.input_ids[: self.llama.n_tokens] = -1  # no token: so no prompt begins with what is cached
        if self.llama.cache is not None:
            self.llama.set_cache(None)
            warnings.warn(
                "The Llama's cache of prompts was taken out: it knows no strengths. Set an empty one if you like.",
                stacklevel=4,
            )

    def _check(self, vector: SteeringVector, check_model: bool) -> None:
        if vector.layer_index >= self._layers:
            raise LayerError(
                f"Layer {vector.layer_index} does not exist: the GGUF model has {self._layers} layers, 1 to "
                f"{self._layers - 1} of which llama.cpp can steer."
            )
        if vector.dim != self._width:
            raise VectorError(
                f"The vector of {vector.behavior!r} has {vector.dim} numbers; the GGUF model has hidden size "
                f"{self._width}. It was made from {vector.model_name!r}: extract it from this model."
            )
        layers = (vector.fingerprint or {}).get("num_layers", self._layers)
        if check_model and layers != self._layers:
            raise ModelMismatchError(
                f"The vector of {vector.behavior!r} was made from {vector.model_name!r} with {layers} layers; the GGUF "
                f"model has {self._layers}. Extract it from this model, or pass check_model=False if you mean it."
            )

    def _check_acts(self) -> None:
        """Some architectures ignore control vectors without a word: one token shows whether this one does."""
        if self.llama in _KNOWN_TO_ACT:
            return
        before = self._logits_of_one_token()
        self._set({layer: torch.ones(self._width) for layer in range(1, self._layers)})
        try:
            after = self._logits_of_one_token()
        finally:
            self._set(None)
            self.llama.reset()
        if torch.equal(before, after):
            name = self.llama.metadata.get("general.architecture", "unknown")
            raise ArchitectureError(
                f"llama.cpp does not apply control vectors to models of architecture {name!r}: this one would run "
                "unsteered. Steer the transformers model, or bake the vectors into its weights."
            )
        _KNOWN_TO_ACT.add(self.llama)

    def _logits_of_one_token(self) -> torch.Tensor:
        self.llama.reset()
        self.llama.eval([max(self.llama.token_bos(), 0)])
        row = self._library.llama_get_logits_ith(self.llama.ctx, -1)
        return torch.tensor(row[: self.llama.n_vocab()])


class LlamaInjector(_Injector):
    """Adds steering vectors to the residual stream of a llama.cpp model while it is attached.

    `ActivationInjector` for a `llama_cpp.Llama`. A generation begun after a change computes its prompt anew.

    Args:
        llama: a loaded `llama_cpp.Llama`.
        vectors: any number of vectors, or vector sets. Of a set the vectors of its `acting_layers` act; those of one
            layer add up.
        strength: multiplier of every vector; 0 is the unsteered model.
        injection_mode, intervention: "all" and "add" are what llama.cpp can do.
        check_model: refuse vectors that were made from a model with another number of layers.

    Raises:
        VectorError, LayerError, ModelMismatchError, OptionError: a vector, its layer, the model or an option does not
            fit; the `Llama` is untouched.
        MissingDependencyError: llama-cpp-python is not installed.
    """

    def __init__(
        self,
        llama: Llama,
        vectors: Vectors | Iterable[Vectors],
        strength: float = 1.0,
        injection_mode: Scope = "all",
        *,
        intervention: str | Callable[[torch.Tensor], Intervention] = "add",
        check_model: bool = True,
    ) -> None:
        self.vectors = acting_vectors(vectors)
        self._strength = check_strength(strength)
        super().__init__(llama, {"": self.vectors}, injection_mode, intervention, check_model)

    @property
    def strength(self) -> Strength:
        """Multiplier of every vector; assigning it acts at once, also while attached."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        before, self._strength = self._strength, check_strength(value)
        try:
            self._additions()
        except OptionError:
            self._strength = before
            raise
        self._put_in_force()

    def _strength_of(self, name: str) -> Strength:
        return self._strength


class LlamaMultiInjector(_Injector):
    """Steers several behaviours of a llama.cpp model at once, each with its own strength.

    `MultiVectorInjector` for a `llama_cpp.Llama`: each set acts at its acting layers, and layers that several sets
    share get the sum.

    Args:
        llama: a loaded `llama_cpp.Llama`.
        vector_sets: a vector set for each behaviour, which acts at its `acting_layers`.
        strengths: multiplier by behaviour, of all its acting vectors; 1.0 for those left out.
        default_layer: the one layer at which every behaviour acts, in place of its set's acting layers.
        injection_mode, intervention, check_model: as in `LlamaInjector`.

    Raises:
        LayerError: a set has no vector at `default_layer`.
        VectorError, ModelMismatchError, OptionError, MissingDependencyError: as in `LlamaInjector`.
    """

    def __init__(
        self,
        llama: Llama,
        vector_sets: Mapping[str, SteeringVectorSet],
        strengths: Mapping[str, float] | None = None,
        injection_mode: Scope = "all",
        default_layer: int | None = None,
        *,
        intervention: str | Callable[[torch.Tensor], Intervention] = "add",
        check_model: bool = True,
    ) -> None:
        sets = sets_by_behavior(vector_sets)
        self.vectors = {name: at_layer(chosen, default_layer).acting for name, chosen in sets.items()}
        self._strengths = strengths_by_behavior(sets, strengths)
        super().__init__(llama, self.vectors, injection_mode, intervention, check_model)

    @property
    def strengths(self) -> dict[str, Strength]:
        """A copy of the strengths by behaviour."""
        return dict(self._strengths)

    def set_strength(self, behavior: str, strength: float) -> None:
        """Changes one behaviour's strength; acts at once, also while attached. KeyError for an unknown behaviour."""
        before = self.get_strength(behavior)
        self._strengths[behavior] = check_strength(strength)
        try:
            self._additions()
        except OptionError:
            self._strengths[behavior] = before
            raise
        self._put_in_force()

    def get_strength(self, behavior: str) -> Strength:
        """The present strength of a behaviour. KeyError for an unknown one."""
        if behavior not in self._strengths:
            raise KeyError(f"No vectors for behaviour {behavior!r}; there are {list(self._strengths)}.")
        return self._strengths[behavior]

    def _strength_of(self, name: str) -> Strength:
        return self._strengths[name]


def _llama_cpp() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise missing_dependency("Steering llama.cpp", "llama-cpp", error) from error
    return llama_cpp
