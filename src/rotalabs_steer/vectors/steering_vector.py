"""A steering vector: one direction in the residual stream, for one decoder layer of one model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, as_real
from rotalabs_steer.errors import FileFormatError, OptionError, VectorError
from rotalabs_steer.files.names import short_model_name
from rotalabs_steer.files.native import load_vector, save_vector, strip_suffix
from rotalabs_steer.files.reading import is_finite
from rotalabs_steer.files.schema import check_description, describe

if TYPE_CHECKING:
    import os

    from jaxtyping import Float

_DOCUMENT_FIELDS = ("behavior", "layer_index", "model_name", "extraction_method", "metadata")


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
        """The architecture of its model (`model_type`, `num_layers`, `hidden_size`), if extraction recorded it."""
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
        save_vector(Path(path), to_document(self), self.vector)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SteeringVector:
        """Reads what `save` wrote. `path` may end in `.json`, `.pt` or neither. Nothing in the files is executed.

        Raises:
            FileNotFoundError: there is no such vector.
            FileFormatError: the files are damaged, unsafe or not a steering vector.
        """
        document, vector = load_vector(Path(path))
        return from_document(document, vector, f"{strip_suffix(Path(path))}.json")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        mine, theirs = self.vector, other.vector
        return to_document(self) == to_document(other) and mine.dtype == theirs.dtype and torch.equal(mine, theirs)

    def __hash__(self) -> int:
        return hash((self.behavior, self.layer_index, self.model_name))

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.behavior!r}, layer {self.layer_index}, dim {self.dim}, norm {self.norm:.3g}, "
            f"{short_model_name(self.model_name)!r})"
        )

    def _replace(self, vector: torch.Tensor, **metadata: Any) -> SteeringVector:
        return dataclasses.replace(self, vector=vector, metadata={**self.metadata, **metadata})


def to_document(vector: SteeringVector) -> dict[str, Any]:
    """The JSON document of a vector: everything but the numbers of its tensor."""
    return {name: getattr(vector, name) for name in _DOCUMENT_FIELDS} | describe(vector.vector)


def from_document(document: Mapping[str, Any], tensor: torch.Tensor, source: str) -> SteeringVector:
    """The vector of a JSON document and a tensor that a stranger may have written.

    Raises:
        FileFormatError: the document does not describe a steering vector, or describes another tensor; `source` says
            which it is.
    """
    facts: dict[str, Any] = {name: document.get(name) for name in ("behavior", "layer_index", "model_name")}
    facts |= {"extraction_method": document.get("extraction_method", "caa"), "metadata": document.get("metadata", {})}
    try:
        vector = SteeringVector(vector=tensor, **facts)
    except VectorError as error:
        raise FileFormatError(f"{source} does not describe a steering vector: {error}") from error
    check_description(document, tensor, source)
    return vector


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
