"""Steering vectors and sets of them: immutable data, arithmetic and the way to disk."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, as_real, plain_value
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError, VectorError
from rotalabs_steer.files.formats import check_target, read_set
from rotalabs_steer.files.hub import find_folder, push_files
from rotalabs_steer.files.names import short_model_name
from rotalabs_steer.files.native import load_vector, save_vector, strip_suffix
from rotalabs_steer.files.pretrained import load_pretrained_folder, pretrained_files, save_pretrained_folder
from rotalabs_steer.files.reading import is_finite
from rotalabs_steer.files.schema import MAX_VECTORS, StoredSet, check_description, describe

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from huggingface_hub import CommitInfo
    from jaxtyping import Float

_VECTOR_FIELDS = ("behavior", "layer_index", "model_name", "extraction_method", "metadata")
_ACTING_LAYERS = "acting_layers"
_CHOSEN_LAYER = "chosen_layer"
_BEST_DEPTH = 0.55
"""Behaviours steer best at 45 to 60 % of depth (measured on SmolLM2-135M and Gemma-3-270M)."""


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction in the residual stream that stands for a behaviour.

    Attributes:
        behavior: name of the behaviour.
        layer_index: 0-based decoder layer whose output the vector is added to.
        vector: `[hidden]`, floating point, finite.
        model_name: name or path of the model it was made from.
        extraction_method: "caa" for a mean difference of activations.
        metadata: JSON-like facts about the vector; `created_at` is always there.

    Raises:
        VectorError: the tensor is not one-dimensional, floating-point and finite, `layer_index` is not an integer from
            0 on, or a name is not a string.
    """

    behavior: str
    layer_index: int
    vector: Float[torch.Tensor, " hidden"]
    model_name: str
    extraction_method: str = "caa"
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_tensor(self.vector)
        layer = as_integer(self.layer_index)
        if layer is None or layer < 0:
            raise VectorError(f"layer_index is {self.layer_index!r}; it must be a 0-based decoder layer.")
        for name in ("behavior", "model_name", "extraction_method"):
            if not isinstance(getattr(self, name), str):
                raise VectorError(f"{name} is {getattr(self, name)!r:.80}; it must be a string.")
        if not isinstance(self.metadata, Mapping):
            raise VectorError(f"metadata is {self.metadata!r:.80}; it must be a dictionary of facts by name.")
        object.__setattr__(self, "layer_index", layer)
        metadata = copy.deepcopy(dict(self.metadata))
        metadata.setdefault("created_at", datetime.now().astimezone().isoformat(timespec="seconds"))
        object.__setattr__(self, "metadata", metadata)

    @property
    def norm(self) -> float:
        """L2 norm, in the units of the residual stream."""
        return float(self.vector.float().norm())

    @property
    def dim(self) -> int:
        """Length of the vector: the model's hidden size."""
        return self.vector.shape[0]

    @property
    def fingerprint(self) -> Mapping[str, Any] | None:
        """The architecture of its model (`model_type`, `num_layers`, `hidden_size`), where extraction recorded it."""
        recorded = self.metadata.get("fingerprint")
        return recorded if isinstance(recorded, Mapping) else None

    def normalize(self) -> SteeringVector:
        """The vector at norm 1. Its metadata records `normalized: True`.

        Raises:
            VectorError: the vector is zero, so it has no direction.
        """
        if self.norm == 0.0:
            raise VectorError(
                f"The vector of {self.behavior!r} at layer {self.layer_index} is zero: it has no direction."
            )
        return self._replace(self.vector / self.vector.norm(), normalized=True)

    def scale(self, factor: float) -> SteeringVector:
        """The vector times `factor`. Its metadata records the product of all factors as `scale_factor`.

        Raises:
            OptionError: the factor is not a finite number.
            VectorError: the scaled vector is not finite.
        """
        number = as_real(factor)
        if number is None:
            raise OptionError(f"A vector is scaled by one finite number, not by {factor!r:.80}.")
        return self._replace(self.vector * number, scale_factor=self.metadata.get("scale_factor", 1.0) * number)

    def to(self, device: torch.device | str) -> SteeringVector:
        """The vector on another device."""
        return self._replace(self.vector.to(device))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `path.json` (everything but the tensor) and `path.pt` (the tensor), atomically."""
        save_vector(Path(path), self._document(), self.vector)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVector:
        """Reads what `save` wrote. `path` may end in `.json`, `.pt` or neither. Nothing in the files is executed.

        Raises:
            FileNotFoundError: there is no such vector.
            FileFormatError: the files are damaged, unsafe or not a steering vector.
        """
        document, vector = load_vector(Path(path))
        return cls._from_document(document, vector, f"{strip_suffix(Path(path))}.json")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        mine, theirs = self.vector, other.vector
        return self._document() == other._document() and mine.dtype == theirs.dtype and torch.equal(mine, theirs)

    def __hash__(self) -> int:
        return hash((self.behavior, self.layer_index, self.model_name))

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.behavior!r}, layer {self.layer_index}, dim {self.dim}, norm {self.norm:.3g}, "
            f"{short_model_name(self.model_name)!r})"
        )

    def _replace(self, vector: torch.Tensor, **metadata: Any) -> SteeringVector:
        return dataclasses.replace(self, vector=vector, metadata={**self.metadata, **metadata})

    def _document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _VECTOR_FIELDS} | describe(self.vector)

    @classmethod
    def _from_document(cls, document: Mapping[str, Any], vector: torch.Tensor, source: str) -> SteeringVector:
        behavior: Any = document.get("behavior")
        layer, model = document.get("layer_index"), document.get("model_name", 0)
        method, metadata = document.get("extraction_method", "caa"), document.get("metadata", {})
        texts = isinstance(behavior, str) and isinstance(model, str) and isinstance(method, str)
        if not texts or not isinstance(metadata, dict) or isinstance(layer, bool) or not isinstance(layer, int):
            raise FileFormatError(
                f"{source} is not the metadata of a steering vector: it needs behavior, model_name and "
                "extraction_method as text, layer_index as a number and metadata as an object."
            )
        check_description(document, vector, source)
        return cls(behavior, layer, vector, model, method, metadata)


class SteeringVectorSet:
    """The vectors of one behaviour, by layer.

    Args:
        behavior: name of the behaviour; every vector must bear it.
        vectors: at most one a layer.
        metadata: JSON-like facts about the set, such as the `chosen_layer` and `strength` that tuning found.
        acting_layers: the layers that steer together where the whole set is used; recorded in the metadata. None keeps
            what the metadata says, and without that the one layer of `get_best()` acts.

    Raises:
        VectorError: a vector of another behaviour or model, or two for one layer.
        LayerError: `acting_layers` is not a list of different layers of the set, or `chosen_layer` in the metadata is
            not one of its layers.
    """

    def __init__(
        self,
        behavior: str,
        vectors: Iterable[SteeringVector] | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        acting_layers: Iterable[int] | None = None,
    ) -> None:
        if not isinstance(behavior, str):
            raise VectorError(f"behavior is {behavior!r:.80}; it must be a string.")
        if not isinstance(metadata, Mapping | None):
            raise VectorError(f"metadata is {metadata!r:.80}; it must be a dictionary of facts by name.")
        if isinstance(vectors, (SteeringVector, Mapping, str)) or not isinstance(vectors, Iterable | None):
            raise VectorError(f"A set is made of a list of vectors, got a {type(vectors).__name__}.")
        self.behavior = behavior
        self.metadata: dict[str, Any] = copy.deepcopy(dict(metadata or {}))
        self._vectors: dict[int, SteeringVector] = {}
        for vector in vectors or ():
            if isinstance(vector, SteeringVector) and vector.layer_index in self._vectors:
                raise VectorError(f"Two vectors for layer {vector.layer_index}: a set holds one vector a layer.")
            self.add(vector)
        if self._vectors and self.metadata.get(_CHOSEN_LAYER) is not None and self.chosen_layer is None:
            raise LayerError(
                f"chosen_layer of the set of {behavior!r} is {self.metadata[_CHOSEN_LAYER]!r:.80}; it must be one of "
                f"its layers, {self.layers}, or left out."
            )
        if acting_layers is not None:
            self.metadata[_ACTING_LAYERS] = acting_layers
        if self.metadata.get(_ACTING_LAYERS) is not None:
            self.metadata[_ACTING_LAYERS] = self._named_layers()

    @property
    def layers(self) -> list[int]:
        """The layers that have a vector, ascending."""
        return sorted(self._vectors)

    @property
    def model_name(self) -> str | None:
        """The model the vectors were made from; None for an empty set."""
        return next((vector.model_name for vector in self._vectors.values()), None)

    @property
    def chosen_layer(self) -> int | None:
        """The layer that tuning chose, if it did."""
        layer = as_integer(self.metadata.get(_CHOSEN_LAYER))
        return layer if layer in self._vectors else None

    @property
    def acting_layers(self) -> list[int]:
        """The layers that steer together, ascending: those that `metadata["acting_layers"]` names, else the best one.

        A set whose layers are alternatives, as extraction makes it, acts at one layer. A set that spreads one vector
        over several layers acts at all of them, and one strength multiplies them together.

        Raises:
            VectorError: the set is empty.
            LayerError: the metadata was changed and no longer names layers of the set.
        """
        if self.metadata.get(_ACTING_LAYERS) is None:
            return [self.get_best().layer_index]
        return self._named_layers()

    @property
    def acting(self) -> list[SteeringVector]:
        """The vectors of `acting_layers`: what steers where the whole set is given to an injector or an engine."""
        return [self._vectors[layer] for layer in self.acting_layers]

    def with_acting_layers(self, layers: Iterable[int]) -> SteeringVectorSet:
        """The same set, in which these layers act together.

        Raises:
            LayerError: `layers` is not a list of different layers of the set.
        """
        return SteeringVectorSet(self.behavior, list(self), self.metadata, acting_layers=layers)

    def add(self, vector: SteeringVector) -> None:
        """Puts a vector in its layer's place, replacing one that is there."""
        if not isinstance(vector, SteeringVector):
            raise VectorError(f"A set is made of SteeringVectors, got a {type(vector).__name__}.")
        if vector.behavior != self.behavior:
            raise VectorError(f"A vector of {vector.behavior!r} does not belong in a set of {self.behavior!r}.")
        for other in self._vectors.values():
            if other.layer_index != vector.layer_index and other.dim != vector.dim:
                raise VectorError(f"A vector of {vector.dim} numbers does not go with one of {other.dim}.")
            if other.layer_index != vector.layer_index and other.model_name != vector.model_name:
                raise VectorError(
                    f"A vector of {vector.model_name!r} does not belong in a set of {other.model_name!r}: the vectors "
                    "of a set are of one model."
                )
        self._vectors[vector.layer_index] = vector

    def get(self, layer_index: int) -> SteeringVector | None:
        """The vector of a layer, or None."""
        layer = as_integer(layer_index)
        return None if layer is None else self._vectors.get(layer)

    def get_best(self, metric: str | None = None) -> SteeringVector:
        """The vector to use where only one layer is to act.

        Args:
            metric: None for the layer that tuning chose, else the one nearest to 55 % of the model's depth where
                extraction recorded the depth, else the largest norm. "norm" for the largest norm, which is nearly
                always the deepest layer and seldom the best.

        Raises:
            VectorError: the set is empty.
            OptionError: unknown metric.
        """
        if metric not in (None, "norm"):
            raise OptionError(f"Unknown metric {metric!r}. Use 'norm', or None for the tuned or middle layer.")
        if not self._vectors:
            raise VectorError(f"The vector set of {self.behavior!r} is empty.")
        if metric is None and self.chosen_layer is not None:
            return self._vectors[self.chosen_layer]
        depths = {_model_depth(vector) for vector in self}
        depth = depths.pop() if len(depths) == 1 else None
        if metric is None and depth:
            return min(self, key=lambda vector: abs((vector.layer_index + 1) / depth - _BEST_DEPTH))
        return max(self, key=lambda vector: vector.norm)

    def to(self, device: torch.device | str) -> SteeringVectorSet:
        """The set on another device."""
        return SteeringVectorSet(self.behavior, [vector.to(device) for vector in self], self.metadata)

    def scale(self, factor: float) -> SteeringVectorSet:
        """Every vector times `factor`."""
        return SteeringVectorSet(self.behavior, [vector.scale(factor) for vector in self], self.metadata)

    def save(self, path: str | os.PathLike[str], format: str | None = None) -> None:  # noqa: A002 - as in torchvision
        """Writes the set. A reader sees all of it or none.

        Args:
            path: a folder, which gets `metadata.json` and `layer_N.json` / `layer_N.pt`; or one file, by its ending.
            format: "native", "safetensors" or "pretrained" (as `save_pretrained`), where the ending does not say it.
        """
        check_target(Path(path), format).write(Path(path), self._stored())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVectorSet:
        """Reads what `save`, `save_pretrained` or rotalabs-steer 1.2 wrote. Nothing in the files is executed.

        Raises:
            FileNotFoundError: there is no such set.
            FileFormatError: the files are damaged, unsafe or not a vector set.
        """
        return cls._from_stored(read_set(Path(path)), Path(path))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes a folder to share: `steering_config.json`, `vectors.safetensors` and a model card, atomically.

        A `README.md` that somebody has written stays as it is.
        """
        save_pretrained_folder(Path(save_directory), self._stored())

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> SteeringVectorSet:
        """Reads what `save_pretrained` or `push_to_hub` wrote, from a folder or the Hugging Face Hub.

        Only JSON and safetensors are fetched and read. The arguments are those of transformers' `from_pretrained`.

        Raises:
            FileNotFoundError: the folder or repository holds no such set.
            FileFormatError: a file is damaged, unsafe or too large.
            OSError: the Hub refuses or cannot be reached; the error is huggingface_hub's own.
        """
        folder = find_folder(
            pretrained_model_name_or_path,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        return cls._from_stored(load_pretrained_folder(folder), folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Uploads the files of `save_pretrained` to the Hugging Face Hub in one commit.

        Args:
            repo_id: `name` or `owner/name`; it is made if it does not exist.
            options: of transformers' `push_to_hub`: `commit_message`, `commit_description`, `private`, `token`,
                `revision`, `create_pr`; and `subfolder`.
        """
        return push_files(repo_id, pretrained_files(self._stored(), repo_id), **options)

    def _stored(self) -> StoredSet:
        document = {"behavior": self.behavior, "model_name": self.model_name, "metadata": self.metadata}
        acting = tuple(self.acting_layers) if len(self) else ()
        return StoredSet(document, {vector.layer_index: (vector._document(), vector.vector) for vector in self}, acting)

    def _named_layers(self) -> list[int]:
        """What the metadata names as acting layers, ascending and as plain ints, if the set has a vector for each."""
        named: Any = plain_value(self.metadata[_ACTING_LAYERS])
        given = [as_integer(layer) for layer in named] if isinstance(named, Iterable) else []
        layers = sorted(layer for layer in given if layer is not None)
        if not 0 < len(layers) == len(set(layers)) == len(given):
            raise LayerError(
                f"acting_layers of the set of {self.behavior!r} is {named!r:.80}; give a list of different layers, as "
                f"in {self.layers or [12, 14]}."
            )
        missing = [layer for layer in layers if layer not in self._vectors]
        if missing:
            raise LayerError(
                f"The set of {self.behavior!r} has no vector at layer {missing[0]}; it has {self.layers}. Choose among "
                "these the layers that act."
            )
        return layers

    @classmethod
    def _from_stored(cls, stored: StoredSet, path: Path) -> SteeringVectorSet:
        behavior, metadata = stored.metadata.get("behavior"), stored.metadata.get("metadata", {})
        if not isinstance(behavior, str) or not isinstance(metadata, dict):
            raise FileFormatError(f"The metadata of {path} needs a behavior (text).")
        vectors = []
        for layer, (about, tensor) in stored.vectors.items():
            vector = SteeringVector._from_document(about, tensor, f"{path}, layer_{layer}")
            if vector.layer_index != layer or vector.behavior != behavior:
                raise FileFormatError(
                    f"{path}: layer_{layer} is the vector of {vector.behavior!r} at layer {vector.layer_index}."
                )
            vectors.append(vector)
        try:
            return cls(behavior, vectors, metadata)
        except (LayerError, VectorError) as error:
            raise FileFormatError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self._vectors)

    def __iter__(self) -> Iterator[SteeringVector]:
        return iter([self._vectors[layer] for layer in self.layers])

    def __contains__(self, layer_index: object) -> bool:
        return as_integer(layer_index) in self._vectors

    def __getitem__(self, layer_index: int) -> SteeringVector:
        vector = self.get(layer_index)
        if vector is None:
            raise KeyError(
                f"No vector for layer {layer_index!r}; the set of {self.behavior!r} has layers {self.layers}."
            )
        return vector

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVectorSet):
            return NotImplemented
        return (self.behavior, self.metadata, list(self)) == (other.behavior, other.metadata, list(other))

    __hash__ = None  # type: ignore[assignment]  # a set can grow

    def __repr__(self) -> str:
        about = f"layers {_ranges(self.layers)}" if self._vectors else "empty"
        if self.metadata.get(_ACTING_LAYERS) is not None:
            about += f", acting {_ranges(self.acting_layers)}"
        elif self.chosen_layer is not None:
            about += f", chosen {self.chosen_layer}"
        name = "" if self.model_name is None else f", {short_model_name(self.model_name)!r}"
        return f"SteeringVectorSet({self.behavior!r}, {about}{name})"


def _ranges(layers: Sequence[int]) -> str:
    """Ascending layers as people write them: 3, 10–12."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def _model_depth(vector: SteeringVector) -> int | None:
    """How many layers the model has, where extraction recorded it. Whatever else a file may say there is ignored."""
    depth = as_integer((vector.fingerprint or {}).get("num_layers"))
    return depth if depth is not None and 0 < depth < MAX_VECTORS else None


def _check_tensor(vector: torch.Tensor) -> None:
    if not isinstance(vector, torch.Tensor):
        raise VectorError(f"A steering vector is a torch tensor of shape [hidden], got {type(vector).__name__}.")
    if vector.dim() != 1 or vector.numel() == 0:
        raise VectorError(f"A steering vector has shape [hidden], got {list(vector.shape)}.")
    if not vector.dtype.is_floating_point or vector.dtype.itemsize == 1:
        raise VectorError(f"A steering vector holds floats of 16 bits or more, got {vector.dtype}. Use vector.float().")
    if vector.layout is not torch.strided or vector.device.type == "meta":
        raise VectorError(
            f"A steering vector is a dense tensor with data, got {vector.layout} on {vector.device}. Use "
            "vector.to_dense(), or load the data first."
        )
    if not is_finite(vector):
        raise VectorError("The steering vector holds NaN or infinite numbers; such a vector destroys generation.")
