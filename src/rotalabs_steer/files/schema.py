"""What a stored vector says of itself: how it is to be applied, its shape, and the version of the format."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from rotalabs_steer.arguments import as_real, json_value
from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import l2_norm

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from jaxtyping import Float

SCHEMA_VERSION = "2.0"
"""Version 1 is what rotalabs-steer 1.2 writes: without `schema_version`, `sha256` and what `describe` adds."""

STEERING = {
    "operator": "add",
    "hook_point": "output of the decoder layer, before the final norm",
    "layer_numbering": "0-based decoder layers",
    "positions": "all",
}
"""How every vector of this package is meant. `positions` is the scope that strengths are tuned for, not a limit."""

MAX_VECTORS = 4096
"""Far above the layers of any model."""


class StoredSet(NamedTuple):
    """A vector set as plain data.

    Attributes:
        metadata: behavior, model_name and the set's metadata.
        vectors: by layer, what is known of a vector, and its tensor.
        acting_layers: the layers that act, for what is written about a set; empty for one that was read.
    """

    metadata: dict[str, Any]
    vectors: dict[int, tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]]
    acting_layers: tuple[int, ...] = ()


def stamp(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the version of the format."""
    return {"schema_version": SCHEMA_VERSION} | dict(document)


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """A document as the content of a JSON file.

    Numbers and arrays of numpy and torch are written as numbers and lists.

    Raises:
        FileFormatError: it holds something that JSON does not have.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=json_value)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"The metadata cannot be written as JSON: {error}. Keep it to text, finite numbers, lists and dicts. "
            "Nothing was written."
        ) from error


def check_version(document: Mapping[str, Any], path: Path) -> None:
    """Refuses documents of a newer major version."""
    version = document.get("schema_version", "1")
    major, supported = str(version).partition(".")[0], SCHEMA_VERSION.partition(".")[0]
    if not major.isdecimal() or len(major) > 3 or int(major) > int(supported):
        raise FileFormatError(
            f"{path} has schema version {version!r:.20}; this release reads up to {supported}. Upgrade rotalabs-steer."
        )


def describe(vector: Float[torch.Tensor, " hidden"]) -> dict[str, Any]:
    """What a document says of its tensor, and how the vector is to be applied."""
    return {
        "vector_shape": list(vector.shape),
        "dtype": str(vector.dtype).removeprefix("torch."),
        "norm": l2_norm(vector),
        "steering": dict(STEERING),
    }


def check_description(document: Mapping[str, Any], vector: Float[torch.Tensor, " hidden"], source: str) -> None:
    """Compares a tensor with what its document says of it.

    Raises:
        FileFormatError: shape, dtype or norm differ, or the vector is meant to be applied in another way.
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
                f"{source} says {name} {_short(claimed)}, "
                + (
                    "which this release does not do: it adds vectors to the output of 0-based decoder layers."
                    if name == "steering"
                    else f"the tensor has another: {_short(actual)}."
                )
            )


def _short(value: Any) -> str:
    text = repr(value).removeprefix("'").removesuffix("'")
    return text if len(text) <= 200 else text[:200] + "…"
