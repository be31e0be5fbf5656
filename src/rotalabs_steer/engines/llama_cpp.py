"""Steers a llama.cpp model, run by llama-cpp-python, with the vectors that steer the transformers model.

llama = Llama("model.gguf", n_ctx=2048)
with LlamaInjector(llama, [vector], strength=1.0):
    llama.create_chat_completion(messages)

llama.cpp holds one vector for each layer and adds it to the layer's output at every token. It has no other scopes and
no other interventions, and it cannot steer layer 0. An injector refuses whatever llama.cpp cannot do.
"""

from __future__ import annotations

import ctypes
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Self

import torch

from rotalabs_steer.errors import (
    ArchitectureError,
    LayerError,
    ModelMismatchError,
    SteeringConflictError,
    VectorError,
    missing_dependency,
)
from rotalabs_steer.files.gguf import check_layers
from rotalabs_steer.steering.acting_layers import acting_vectors, at_layer, sets_by_behavior
from rotalabs_steer.steering.held_strengths import HeldStrengths, OneStrength, StrengthByBehavior
from rotalabs_steer.steering.interventions import make_intervention
from rotalabs_steer.steering.plans import PlanItem, constant_additions
from rotalabs_steer.steering.strengths import check_strength, strengths_by_behavior
from rotalabs_steer.steering.vector_checks import check_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from llama_cpp import Llama

    from rotalabs_steer.steering.acting_layers import Vectors
    from rotalabs_steer.steering.interventions import Intervention
    from rotalabs_steer.steering.scopes import Scope
    from rotalabs_steer.vectors import SteeringVector, SteeringVectorSet

_STEERED: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every `Llama` that an injector steers now."""
_KNOWN_TO_ACT: weakref.WeakSet[Any] = weakref.WeakSet()
"""Every `Llama` whose output was seen to change under a control vector."""


class _Injector(HeldStrengths):
    """Puts vectors into a `Llama` and takes them out again."""

    def __init__(
        self,
        llama: Llama,
        acting: Mapping[str, Sequence[SteeringVector]],
        injection_mode: Scope,
        intervention: str | Callable[[torch.Tensor], Intervention],
        check_model: bool,
    ) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise missing_dependency("Steering llama.cpp", "llama-cpp", error) from error
        self.llama = llama
        self.injection_mode = injection_mode
        self._library: Any = llama_cpp
        self._width: int = self._library.llama_model_n_embd(llama.model)
        self._layers: int = self._library.llama_model_n_layer(llama.model)
        self._acting = []
        for name, vectors in acting.items():
            for vector in vectors:
                self._check(vector, check_model)
                self._acting.append((name, vector.layer_index, make_intervention(intervention, vector.vector)))
        self._additions()  # raises an error for whatever llama.cpp cannot do, before anything is changed
        self._attached = False
        self._entered = 0

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

    def __exit__(self, *failure: object) -> None:
        self._entered -= 1
        if self._entered == 0:
            self.detach()

    def _put_in_force(self) -> None:
        additions = self._additions()
        if self._attached:
            self._set(additions)
            self._forget_computed()

    def _additions(self) -> dict[int, torch.Tensor]:
        """The vector to add at each layer, at the present strengths."""
        additions = constant_additions(
            (
                PlanItem(layer, intervention, self.injection_mode, self._strengths[name])
                for name, layer, intervention in self._acting
            ),
            "llama.cpp",
        )
        check_layers(additions)
        for layer, delta in additions.items():
            if not bool(torch.isfinite(delta).all()):
                raise VectorError(
                    f"What llama.cpp would add at layer {layer} has numbers that float32 cannot hold: they become "
                    "infinite. Use a smaller strength."
                )
        return additions

    def _set(self, additions: Mapping[int, torch.Tensor] | None) -> None:
        """Sets the control vector of the context, or takes it out if there is nothing to add."""
        set_vector, context = self._library.llama_set_adapter_cvec, self.llama.ctx
        if additions is None or not any(bool(delta.any()) for delta in additions.values()):
            failed = set_vector(context, None, 0, 0, 0, 0)
        else:
            # The first row is layer 1. Layers without an addition need zeros: llama.cpp keeps their old vectors
            # otherwise.
            table = torch.zeros(self._layers - 1, self._width)
            for layer, delta in additions.items():
                table[layer - 1] = delta
            numbers = ctypes.cast(table.data_ptr(), ctypes.POINTER(ctypes.c_float))
            failed = set_vector(context, numbers, table.numel(), self._width, 1, self._layers)
        if failed:
            raise ArchitectureError(f"llama.cpp refused the control vector (code {failed}).")

    def _forget_computed(self) -> None:
        """Makes the next generation compute its whole prompt, because the cache was computed at another strength.

        A generation that is under way keeps its cache. The new strength acts on its further tokens.
        """
        # llama-cpp-python compares these ids with a new prompt to see what it can reuse, and -1 is not a token's id.
        self.llama.input_ids[: self.llama.n_tokens] = -1
        if self.llama.cache is not None:
            self.llama.set_cache(None)
            warnings.warn(
                "The Llama's prompt cache was removed, because its entries do not record the strength at which they "
                "were computed. Set a new cache if you need one.",
                stacklevel=4,
            )

    def _check(self, vector: SteeringVector, check_model: bool) -> None:
        if vector.layer_index >= self._layers:
            raise LayerError(
                f"Layer {vector.layer_index} does not exist: the GGUF model has {self._layers} layers, 1 to "
                f"{self._layers - 1} of which llama.cpp can steer."
            )
        check_width(vector, self._width, "the GGUF model")
        layers = (vector.fingerprint or {}).get("num_layers", self._layers)
        if check_model and layers != self._layers:
            raise ModelMismatchError(
                f"The vector of {vector.behavior!r} was made from {vector.model_name!r} with {layers} layers; the GGUF "
                f"model has {self._layers}. Extract it from this model, or pass check_model=False if you mean it."
            )

    def _check_acts(self) -> None:
        """Refuses a model that control vectors do not change.

        llama.cpp reports success for architectures that ignore them, so one token is computed with and without.
        """
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
        self.llama.eval([max(self.llama.token_bos(), 0)])  # -1 is a vocabulary without such a token
        row = self._library.llama_get_logits_ith(self.llama.ctx, -1)
        return torch.tensor(row[: self.llama.n_vocab()])


class LlamaInjector(_Injector, OneStrength):
    """Adds steering vectors to the residual stream of a llama.cpp model while it is attached.

    It is `ActivationInjector` for a `llama_cpp.Llama`. A generation that begins after a change of strength computes its
    whole prompt again.

    Args:
        llama: a loaded `llama_cpp.Llama`.
        vectors: any number of vectors, or vector sets. A set acts at its `acting_layers`. Vectors of one layer add up.
        strength: multiplier of every vector; 0 is the unsteered model.
        injection_mode, intervention: llama.cpp can only do "all" and "add".
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
        self._strengths = {"": check_strength(strength)}
        super().__init__(llama, {"": self.vectors}, injection_mode, intervention, check_model)


class LlamaMultiInjector(_Injector, StrengthByBehavior):
    """Steers several behaviours of a llama.cpp model at once, each with its own strength.

    It is `MultiVectorInjector` for a `llama_cpp.Llama`: each set acts at its acting layers, and layers that several
    sets share get the sum.

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
