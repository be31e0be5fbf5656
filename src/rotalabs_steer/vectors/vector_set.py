"""A set of steering vectors: the vectors of one behaviour and one model, by layer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.arguments import as_integer, as_real, plain_value
from rotalabs_steer.errors import FileFormatError, LayerError, OptionError, VectorError
from rotalabs_steer.files.formats import check_target, read_set
from rotalabs_steer.files.hub import find_folder, push_files
from rotalabs_steer.files.names import short_model_name
from rotalabs_steer.files.pretrained import load_pretrained_folder, pretrained_files, save_pretrained_folder
from rotalabs_steer.files.schema import MAX_VECTORS, StoredSet
from rotalabs_steer.vectors.steering_vector import SteeringVector, from_document, to_document

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import torch
    from huggingface_hub import CommitInfo

_ACTING_LAYERS = "acting_layers"
_CHOSEN_LAYER = "chosen_layer"
_BEST_DEPTH = 0.55
"""Behaviours steer best at 45 to 60 % of the model's depth (measured on SmolLM2-135M and Gemma-3-270M)."""


class SteeringVectorSet:
    """The vectors of one behaviour, by layer.

    Args:
        behavior: name of the behaviour, which every vector must have.
        vectors: at most one a layer.
        metadata: JSON-like facts about the set, such as the `chosen_layer` and `strength` that tuning found.
        acting_layers: the layers that steer together when the whole set is used; recorded in the metadata. None keeps
            those of the metadata. If that has none either, the one layer of `get_best()` acts.

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
        """The layer that tuning chose; None if the set is not tuned."""
        layer = as_integer(self.metadata.get(_CHOSEN_LAYER))
        return layer if layer in self._vectors else None

    @property
    def safe_range(self) -> tuple[float, float] | None:
        """The strengths within which steering stays in the coherence budget and leaves answers whole.

        It holds at least −1 to 1 for a calibrated set, and is None for a raw set, of which it was not measured.
        """
        calibration = self.metadata.get("calibration")
        if not isinstance(calibration, Mapping):
            return None
        given = calibration.get("safe_range")
        ends = [as_real(end) or 0.0 for end in given] if isinstance(given, list | tuple) else []
        return min([-1.0, *ends]), max([1.0, *ends])

    @property
    def acting_layers(self) -> list[int]:
        """The layers that steer together, ascending: those in `metadata["acting_layers"]`, else the best one.

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
        """The vectors of `acting_layers`, which steer when the whole set is given to an injector or an engine."""
        return [self._vectors[layer] for layer in self.acting_layers]

    def with_acting_layers(self, layers: Iterable[int]) -> SteeringVectorSet:
        """The same set with other acting layers.

        Raises:
            LayerError: `layers` is not a list of different layers of the set.
        """
        return SteeringVectorSet(self.behavior, list(self), self.metadata, acting_layers=layers)

    def add(self, vector: SteeringVector) -> None:
        """Adds a vector, or replaces the one of its layer.

        Raises:
            VectorError: the vector is of another behaviour, model or size.
        """
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
        """The vector to use when only one layer is to act.

        Args:
            metric: None for the layer that tuning chose; without one, the layer nearest to 55 % of the model's depth;
                if the depth is not recorded, the largest norm. "norm" for the largest norm, which nearly always belongs
                to the deepest layer and seldom to the best.

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
        depth = depths.pop() if len(depths) == 1 else None  # vectors that disagree about it prove nothing
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
            path: a folder, which gets `metadata.json` and `layer_N.json` / `layer_N.pt`; or a `.safetensors` file.
            format: "native", "safetensors" or "pretrained" (as `save_pretrained`); by default, `path` decides.
        """
        write = check_target(Path(path), format)
        write(Path(path), self._stored())

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

        A `README.md` that a person has written stays as it is.
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
            repo_id: `name` or `owner/name`; the repository is created if it does not exist.
            options: those of transformers' `push_to_hub` (`commit_message`, `commit_description`, `private`, `token`,
                `revision`, `create_pr`), and `subfolder`.
        """
        return push_files(repo_id, pretrained_files(self._stored(), repo_id), **options)

    def _stored(self) -> StoredSet:
        document = {"behavior": self.behavior, "model_name": self.model_name, "metadata": self.metadata}
        vectors = {vector.layer_index: (to_document(vector), vector.vector) for vector in self}
        return StoredSet(document, vectors, tuple(self.acting_layers) if vectors else ())

    def _named_layers(self) -> list[int]:
        """The acting layers in the metadata, ascending and as plain ints, if the set has a vector for each."""
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
                f"The set of {self.behavior!r} has no vector at layer {missing[0]}; it has {self.layers}. Choose the "
                "layers that act among these."
            )
        return layers

    @classmethod
    def _from_stored(cls, stored: StoredSet, path: Path) -> SteeringVectorSet:
        behavior, metadata = stored.metadata.get("behavior"), stored.metadata.get("metadata", {})
        if not isinstance(behavior, str) or not isinstance(metadata, dict):
            raise FileFormatError(f"The metadata of {path} needs a behavior (a string).")
        vectors = []
        for layer, (about, tensor) in stored.vectors.items():
            vector = from_document(about, tensor, f"{path}, layer_{layer}")
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
    """Ascending layers as a short string, such as "3, 10–12"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, ends, strict=True))


def _model_depth(vector: SteeringVector) -> int | None:
    """The number of layers of the model, if extraction recorded it. A value that cannot be one is ignored."""
    depth = as_integer((vector.fingerprint or {}).get("num_layers"))
    return depth if depth is not None and 0 < depth < MAX_VECTORS else None
