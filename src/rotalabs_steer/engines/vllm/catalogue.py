"""The vectors of a server, read from a folder and checked against the model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.engines.vllm.steering import Addition, Steering
from rotalabs_steer.errors import LayerError, OptionError, VectorError
from rotalabs_steer.files.formats import find_sets
from rotalabs_steer.steering.vector_checks import check_same_model, check_width
from rotalabs_steer.vectors import SteeringVectorSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from jaxtyping import Float

    from rotalabs_steer.engines.vllm.requests import SteeringRequest
    from rotalabs_steer.vectors import SteeringVector


@dataclass(frozen=True)
class ServedModel:
    """The model that vectors must fit.

    Attributes:
        fingerprint: as `decoder.model_fingerprint` gives it.
        dtype: of the residual stream.
    """

    name: str
    fingerprint: Mapping[str, str | int]
    dtype: torch.dtype

    @property
    def num_layers(self) -> int:
        """The number of decoder layers."""
        return int(self.fingerprint["num_layers"])

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return int(self.fingerprint["hidden_size"])


@dataclass(frozen=True)
class Catalogue:
    """Vector sets by behaviour, all of which fit the model.

    Attributes:
        max_strength: the largest absolute value of a strength that a request may ask for.
        layers: the decoder layers that are prepared for steering.
    """

    model: ServedModel
    sets: Mapping[str, SteeringVectorSet]
    max_strength: float
    layers: tuple[int, ...]
    _digests: Mapping[tuple[str, int], str] = field(repr=False)
    _vectors: Mapping[str, Float[torch.Tensor, " hidden"]] = field(repr=False)

    @classmethod
    def load(
        cls,
        folder: Path,
        model: ServedModel,
        max_strength: float,
        layers: Iterable[int] | None = None,
        *,
        check_model: bool = True,
    ) -> Catalogue:
        """Reads a folder of vector sets, or one set.

        Args:
            layers: the decoder layers to prepare; None for all that a set has a vector for.

        Raises:
            FileNotFoundError: there is no set.
            FileFormatError, VectorError, LayerError, ModelMismatchError: a set is damaged or does not fit the model.
        """
        sets: dict[str, SteeringVectorSet] = {}
        places = find_sets(folder) if folder.exists() else []
        if not places:
            raise FileNotFoundError(
                f"{folder} has no vector sets. Save some there: SteeringVectorSet.save('{folder}/formality')."
            )
        for path in places:
            found = SteeringVectorSet.load(path)
            if found.behavior in sets:
                raise VectorError(f"{folder} has two sets for {found.behavior!r}; rename the behaviour of one.")
            _check(found, model, check_model=check_model)
            sets[found.behavior] = found
        held = {layer for vectors in sets.values() for layer in vectors.layers}
        prepared = tuple(sorted(held if layers is None else set(layers)))
        for layer in prepared:
            if not 0 <= layer < model.num_layers:
                raise LayerError(f"Layer {layer} cannot be prepared: {model.name} has {model.num_layers} layers.")
        for name, layer in _acting(sets):
            if layer not in prepared:
                raise LayerError(f"{name!r} acts at layer {layer}, but only layers {list(prepared)} are prepared.")
        digests = {(name, v.layer_index): _digest(v) for name, vectors in sets.items() for v in vectors}
        tensors = {digests[name, v.layer_index]: v.vector for name, vectors in sets.items() for v in vectors}
        return cls(model, sets, max_strength, prepared, digests, tensors)

    def resolve(self, request: SteeringRequest) -> Steering | None:
        """The additions that a request asks for; None if all its strengths are 0.

        Raises:
            OptionError: an unknown behaviour, or a strength that the model's dtype cannot hold.
            LayerError: a layer the behaviour has no vector for, or that is not prepared.
        """
        named = dict(request.layers)
        additions = []
        for name, strength in request.behaviors:
            vectors = self._set(name)
            for layer in named.get(name) or vectors.acting_layers:
                self._check_layer(vectors, layer)
                digest = self._digests[name, layer]
                peak = float(self._vectors[digest].abs().max()) * abs(strength)
                if peak > torch.finfo(self.model.dtype).max:  # it would become infinite in the table
                    raise OptionError(
                        f"{name!r} at strength {strength:g} has numbers up to {peak:.3g}, more than {self.model.dtype} "
                        "holds. Use a smaller strength."
                    )
                additions.append(Addition(layer, name, digest, strength))
        return Steering(tuple(sorted(additions)), request.scope) if additions else None

    def deltas(self, steering: Steering) -> dict[int, Float[torch.Tensor, " hidden"]]:
        """The sum of a request's additions at each layer, in fp32.

        Raises:
            VectorError: this worker does not have a vector of the request, because it has read another folder.
        """
        sums: dict[int, torch.Tensor] = {}
        for addition in steering.additions:
            if addition.digest not in self._vectors:
                raise VectorError(
                    f"A request needs a vector of {addition.behavior!r} at layer {addition.layer} that this worker "
                    "does not have. Its folder of vectors differs from the API server's: start the engine again."
                )
            delta = self._vectors[addition.digest].float() * addition.strength
            sums[addition.layer] = sums[addition.layer] + delta if addition.layer in sums else delta
        return sums

    def with_older(self, older: Catalogue, used: Iterable[str] | None = None) -> Catalogue:
        """This catalogue, with those vectors of an older one that requests which were accepted before still need.

        Args:
            used: digests of the vectors that such requests may use; None for those of the older catalogue's sets.

        Raises:
            LayerError: a set acts at a layer that was not prepared when the engine started.
        """
        for name, layer in _acting(self.sets):
            if layer not in older.layers:
                raise LayerError(
                    f"{name!r} acts at layer {layer}, but the engine was started with layers {list(older.layers)} "
                    "prepared. Start it again with this set in its folder, or with these layers."
                )
        wanted = older.digests if used is None else set(used)
        # The prepared layers stay those of the older catalogue: they are part of the compiled graph.
        kept = {digest: vector for digest, vector in older._vectors.items() if digest in wanted}
        return Catalogue(
            self.model, self.sets, self.max_strength, older.layers, self._digests, {**kept, **self._vectors}
        )

    @property
    def digests(self) -> set[str]:
        """Digests of the vectors of the sets."""
        return set(self._digests.values())

    @property
    def key(self) -> str:
        """Identifies the behaviours and the vectors, so that two processes can compare what they have read."""
        rows = sorted((name, layer, digest) for (name, layer), digest in self._digests.items())
        return hashlib.sha256(repr(rows).encode()).hexdigest()

    def describe(self) -> list[dict[str, Any]]:
        """The behaviours as `GET /v1/steering` lists them."""
        return [
            {
                "name": name,
                "acting_layers": vectors.acting_layers,
                "layers": [layer for layer in vectors.layers if layer in self.layers],
                "dim": self.model.hidden_size,
                "model": vectors.model_name,
                "safe_range": vectors.safe_range and list(vectors.safe_range),
                "steers": vectors.metadata.get("steers"),
            }
            for name, vectors in sorted(self.sets.items())
        ]

    def _set(self, name: str) -> SteeringVectorSet:
        if name not in self.sets:
            raise OptionError(f"Unknown behaviour {name!r:.80}. This server has: {', '.join(sorted(self.sets))}.")
        return self.sets[name]

    def _check_layer(self, vectors: SteeringVectorSet, layer: int) -> None:
        if layer not in vectors:
            raise LayerError(f"{vectors.behavior!r} has no vector at layer {layer}; it has {vectors.layers}.")
        if layer not in self.layers:
            raise LayerError(f"Layer {layer} is not prepared for steering on this server; {list(self.layers)} are.")


def _acting(sets: Mapping[str, SteeringVectorSet]) -> list[tuple[str, int]]:
    """Each behaviour with each of its acting layers."""
    return [(name, layer) for name, vectors in sets.items() for layer in vectors.acting_layers]


def _check(vectors: SteeringVectorSet, model: ServedModel, *, check_model: bool) -> None:
    if not len(vectors):
        raise VectorError(f"The vector set of {vectors.behavior!r} is empty.")
    for vector in vectors:
        check_width(vector, model.hidden_size, model.name)
        if vector.layer_index >= model.num_layers:
            raise LayerError(
                f"{vector.behavior!r} has a vector for layer {vector.layer_index}; {model.name} has {model.num_layers} "
                "layers."
            )
        if check_model:
            check_same_model(dict(model.fingerprint), model.name, vector)


def _digest(vector: SteeringVector) -> str:
    return hashlib.sha256(vector.vector.float().contiguous().numpy().tobytes()).hexdigest()[:32]
