"""The JSON document of a stored vector: how the vector is applied, its shape, and the version of the format."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from rotalabs_steer.arguments import as_real, json_value
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import MAX_JSON_BYTES, l2_norm, parse_json_object, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from jaxtyping import Float

SCHEMA_VERSION = "2.0"
"""rotalabs-steer 1.2 writes version 1: without `schema_version`, `sha256` and the entries of `describe`."""

STEERING = {
    "operator": "add",
    "hook_point": "output of the decoder layer, before the final norm",
    "layer_numbering": "0-based decoder layers",
    "positions": "all",
}
"""How every vector of this package is applied. `positions` is the scope that strengths are tuned for, not a limit."""

MAX_VECTORS = 4096
"""Far more than the layers of any model."""


class StoredSet(NamedTuple):
    """A vector set as plain data.

    Attributes:
        metadata: behavior, model_name and the set's metadata.
        vectors: by layer, what is known of a vector, and its tensor.
        acting_layers: the layers that act together, for the files that describe a set; empty for one that was read.
    """

    metadata: dict[str, Any]
    vectors: dict[int, tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]]
    acting_layers: tuple[int, ...] = ()


def stamp(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the document that begins with the version of the format."""
    return {"schema_version": SCHEMA_VERSION} | dict(document)


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """The content of a JSON file. Numbers and arrays of numpy and torch are written as numbers and lists.

    Raises:
        FileFormatError: the document holds something that JSON cannot express.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=json_value)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"The metadata cannot be written as JSON: {error}. Keep it to text, finite numbers, lists and dicts. "
            "Nothing was written."
        ) from error


def read_document(path: Path) -> dict[str, Any]:
    """Reads the JSON file of a vector or a set.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, unsafe or of a newer version.
    """
    document = parse_json_object(read_bytes(path, MAX_JSON_BYTES), path)
    check_version(document, path)
    return document


def check_version(document: Mapping[str, Any], path: Path) -> None:
    """Refuses documents of a newer major version."""
    version = document.get("schema_version", "1")
    major, supported = str(version).partition(".")[0], SCHEMA_VERSION.partition(".")[0]
    if not major.isdecimal() or len(major) > 3 or int(major) > int(supported):
        raise FileFormatError(
            f"{path} has schema version {version!r:.20}; this release reads up to {supported}. Upgrade rotalabs-steer."
        )


def describe(vector: Float[torch.Tensor, " hidden"]) -> dict[str, Any]:
    """What a document says about its tensor and about how the vector is applied."""
    return {
        "vector_shape": list(vector.shape),
        "dtype": str(vector.dtype).removeprefix("torch."),
        "norm": l2_norm(vector),
        "steering": dict(STEERING),
    }


def check_description(document: Mapping[str, Any], vector: Float[torch.Tensor, " hidden"], source: str) -> None:
    """Compares a tensor with what its document says about it.

    Raises:
        FileFormatError: shape, dtype or norm differ, or the vector is to be applied in another way.
    """
    for name, actual in describe(vector).items():
        claimed = document.get(name, actual)
        if name == "norm":
            number = as_real(claimed)
            same = number is not None and math.isclose(number, actual, rel_tol=1e-3)
        elif name == "steering":
            same = isinstance(claimed, dict) and all(claimed.get(key, text) == text for key, text in STEERING.items())
        else:
            same = claimed == actual
        if not same:
            raise FileFormatError(
                f"{source} says {name} {claimed!s:.200}, "
                + (
                    "which this release does not do: it adds vectors to the output of 0-based decoder layers."
                    if name == "steering"
                    else f"the tensor has another: {actual}."
                )
            )
