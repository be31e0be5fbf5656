"""The native format: `NAME.json` (metadata) with `NAME.pt` (the tensor), and folders of them.

The `.json` file is the commit point. It names its tensor by SHA-256, so a reader can always tell whether the two
belong together. A writer keeps the old tensor under a name made of its digest until the new metadata is in place; a
reader that finds the tensor changed under it takes the kept one or reads again. Killed at any moment, a writer leaves
the old vector or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import locked, remove_strays, write_atomically
from rotalabs_steer.files.reading import (
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    parse_json_object,
    parse_vector,
    read_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from jaxtyping import Float

SCHEMA_VERSION = "2.0"
"""Version 1 is what rotalabs-steer 1.2 writes: the same files without `schema_version` and `sha256`."""

_SET_FILE = "metadata.json"
_KEPT = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{64}\.pt")
_ATTEMPTS = 50

_T = TypeVar("_T")


class _ChangedMeanwhileError(Exception):
    """A writer was at work while we read."""


def save_vector(path: Path, metadata: Mapping[str, Any], vector: Float[torch.Tensor, " hidden"]) -> None:
    """Writes `path.json` and `path.pt`. Dots in the name stay: `qwen2.5` becomes `qwen2.5.json`."""
    path = strip_suffix(path)
    tensor = _tensor_bytes(vector)
    document = _json_bytes(_stamp(metadata) | {"sha256": _digest(tensor)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        _pin_vector(path)
        _keep_tensors(path.parent, {path.name})
        write_atomically(_add_suffix(path, ".pt"), tensor)
        write_atomically(_add_suffix(path, ".json"), document)
        _clean(path.parent, {path.name})


def load_vector(path: Path) -> tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]:
    """Metadata and tensor of `path.json` and `path.pt`; `path` may carry either ending.

    Raises:
        FileNotFoundError: one of the files is missing.
        FileFormatError: a file is damaged, unsafe, of a newer version, or not a vector.
    """
    path = strip_suffix(path)
    return _retry(lambda: _load_vector_once(path))


def save_vector_set(
    directory: Path,
    metadata: Mapping[str, Any],
    vectors: Mapping[int, tuple[Mapping[str, Any], Float[torch.Tensor, " hidden"]]],
) -> None:
    """Writes a folder: `metadata.json` for the set, `layer_N.json` and `layer_N.pt` for each layer N."""
    tensors = {layer: _tensor_bytes(vector) for layer, (_, vector) in vectors.items()}
    layers = {layer: _stamp(about) | {"sha256": _digest(tensors[layer])} for layer, (about, _) in vectors.items()}
    documents = {layer: _json_bytes(about) for layer, about in layers.items()}
    whole = _json_bytes(
        _stamp(metadata) | {"layers": sorted(layers), "vectors": {str(n): layers[n] for n in sorted(layers)}}
    )
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        old = {path.stem for path in directory.glob("layer_*.pt") if _layer_number(path.stem) is not None}
        new = {_layer_name(layer) for layer in layers}
        _pin_set(directory)
        _keep_tensors(directory, old | new)
        for layer in layers:
            write_atomically(directory / f"{_layer_name(layer)}.pt", tensors[layer])
            write_atomically(directory / f"{_layer_name(layer)}.json", documents[layer])
        write_atomically(directory / _SET_FILE, whole)
        for name in old - new:
            (directory / f"{name}.json").unlink(missing_ok=True)
            (directory / f"{name}.pt").unlink(missing_ok=True)
        _clean(directory, old | new | {_SET_FILE.removesuffix(".json")})


def load_vector_set(
    directory: Path,
) -> tuple[dict[str, Any], dict[int, tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]]]:
    """Set metadata and, by layer, metadata and tensor. Reads folders of rotalabs-steer 1.2 too."""
    return _retry(lambda: _load_vector_set_once(directory))


def strip_suffix(path: Path) -> Path:
    """The path without a final `.json` or `.pt`."""
    return path.with_name(path.name.removesuffix(".json").removesuffix(".pt"))


def _load_vector_once(path: Path) -> tuple[dict[str, Any], torch.Tensor]:
    metadata = _read_json(_add_suffix(path, ".json"))
    return metadata, _read_tensor(path, metadata.get("sha256"))


def _load_vector_set_once(directory: Path) -> tuple[dict[str, Any], dict[int, tuple[dict[str, Any], torch.Tensor]]]:
    metadata = _read_json(directory / _SET_FILE)
    layers = _listed_layers(metadata, directory)
    described = metadata.pop("vectors", None)
    del metadata["layers"]
    if described is None:  # 1.2
        return metadata, {layer: _load_vector_once(directory / _layer_name(layer)) for layer in layers}
    if not isinstance(described, dict) or set(described) != {str(layer) for layer in layers}:
        raise FileFormatError(f"{directory / _SET_FILE} does not describe the vectors it lists.")
    vectors = {}
    for layer in layers:
        about = described[str(layer)]
        if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
            raise FileFormatError(f"{directory / _SET_FILE} has no SHA-256 for layer {layer}.")
        vectors[layer] = (about, _read_tensor(directory / _layer_name(layer), about["sha256"]))
    return metadata, vectors


def _listed_layers(metadata: dict[str, Any], directory: Path) -> list[int]:
    layers = metadata.get("layers")
    if isinstance(layers, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in layers):
        return layers
    raise FileFormatError(f"{directory / _SET_FILE} needs 'layers': a list of layer numbers, found {layers!r:.80}.")


def _read_json(path: Path) -> dict[str, Any]:
    metadata = parse_json_object(read_bytes(path, MAX_JSON_BYTES), path)
    version = metadata.get("schema_version", "1")
    major, supported = str(version).partition(".")[0], SCHEMA_VERSION.partition(".")[0]
    if not major.isdecimal() or len(major) > 3 or int(major) > int(supported):
        raise FileFormatError(
            f"{path} has schema version {version!r:.20}; this release reads up to {supported}. Upgrade rotalabs-steer."
        )
    return metadata


def _read_tensor(path: Path, sha256: str | None) -> torch.Tensor:
    """The tensor with this digest (any, where none is named): the file itself or the copy a writer kept."""
    current = _add_suffix(path, ".pt")
    if sha256 is None:
        return parse_vector(read_bytes(current, MAX_TENSOR_BYTES), current)
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FileFormatError(f"{path} names its tensor by {sha256!r:.80}, which is no SHA-256.")
    for candidate in (current, _kept(path, sha256)):
        with contextlib.suppress(FileNotFoundError):
            content = read_bytes(candidate, MAX_TENSOR_BYTES)
            if _digest(content) == sha256:
                return parse_vector(content, current)
    if not current.exists():
        raise FileNotFoundError(f"{current} is missing: copy it together with its .json file.")
    raise _ChangedMeanwhileError(f"{current} is not the tensor that its metadata describes (SHA-256 differs).")


def _retry(read: Callable[[], _T]) -> _T:
    for _ in range(_ATTEMPTS):
        try:
            return read()
        except _ChangedMeanwhileError as changed:
            last = changed
    raise FileFormatError(f"{last} The file was changed or damaged after it was saved.")


def _pin_vector(path: Path) -> None:
    """Gives a vector saved by 1.2 its digest before it is replaced, so that a killed writer cannot mix it up."""
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = _read_json(_add_suffix(path, ".json"))
        if "sha256" not in metadata:
            digest = _digest(read_bytes(_add_suffix(path, ".pt"), MAX_TENSOR_BYTES))
            write_atomically(_add_suffix(path, ".json"), _json_bytes(metadata | {"sha256": digest}))


def _pin_set(directory: Path) -> None:
    """The same for a set saved by 1.2: its metadata comes to hold what its layers' files say."""
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = _read_json(directory / _SET_FILE)
        if "vectors" in metadata:
            return
        described = {}
        for layer in _listed_layers(metadata, directory):
            path = directory / _layer_name(layer)
            digest = _digest(read_bytes(_add_suffix(path, ".pt"), MAX_TENSOR_BYTES))
            described[str(layer)] = _read_json(_add_suffix(path, ".json")) | {"sha256": digest}
        write_atomically(directory / _SET_FILE, _json_bytes(metadata | {"vectors": described}))


def _keep_tensors(directory: Path, names: set[str]) -> None:
    """Gives every tensor that is about to be replaced a second name made of its digest."""
    for name in names:
        path = directory / f"{name}.pt"
        with contextlib.suppress(FileNotFoundError):
            kept = _kept(directory / name, _digest(path.read_bytes()))
            if not kept.exists():
                _link(path, kept)


def _link(path: Path, second: Path) -> None:
    try:
        os.link(path, second)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        write_atomically(second, path.read_bytes())


def _clean(directory: Path, names: set[str]) -> None:
    """Removes kept tensors and what earlier killed writers left of these names."""
    for path in directory.iterdir():
        match = _KEPT.fullmatch(path.name)
        if match and match["name"] in names:
            path.unlink(missing_ok=True)
    remove_strays(directory, {f"{name}{suffix}" for name in names for suffix in (".json", ".pt")})


def _kept(path: Path, sha256: str) -> Path:
    return path.with_name(f".{path.name}.{sha256}.pt")


def _add_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _layer_name(layer: int) -> str:
    return f"layer_{layer}"


def _layer_number(name: str) -> int | None:
    match = re.fullmatch(r"layer_(\d{1,6})", name)
    return int(match[1]) if match else None


def _stamp(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema_version": SCHEMA_VERSION} | dict(metadata)


def _tensor_bytes(vector: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(vector.detach().to("cpu").clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()


def _json_bytes(metadata: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(metadata, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise FileFormatError(
            f"The metadata cannot be written as JSON: {error}. Keep it to text, finite numbers, lists and dicts. "
            "Nothing was written."
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
