"""The native format: `NAME.json` (metadata) with `NAME.pt` (the tensor), and folders of them.

The `.json` file is the commit point: it names its tensor by SHA-256, so a reader can always tell whether the two
belong together (see `two_file_commit`).
"""

from __future__ import annotations

import contextlib
import io
import re
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.archives import open_archive
from rotalabs_steer.files.atomic import locked, write_atomically
from rotalabs_steer.files.pickles import parse_pickle
from rotalabs_steer.files.reading import (
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    check_finite,
    check_vector_layout,
    is_part,
    parse_json_object,
    read_bytes,
)
from rotalabs_steer.files.schema import MAX_VECTORS, StoredSet, check_version, json_bytes, stamp
from rotalabs_steer.files.two_file_commit import (
    digest,
    keep_old_data,
    read_by_digest,
    read_while_written,
    remove_old_data,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float

SET_FILE = "metadata.json"


def save_vector(path: Path, metadata: Mapping[str, Any], vector: Float[torch.Tensor, " hidden"]) -> None:
    """Writes `path.json` and `path.pt`. Dots in the name stay: `qwen2.5` becomes `qwen2.5.json`."""
    path = strip_suffix(path)
    tensor = _tensor_bytes(vector)
    document = json_bytes(stamp(metadata) | {"sha256": digest(tensor)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        _pin_vector(path)
        keep_old_data(_add_suffix(path, ".pt"))
        write_atomically(_add_suffix(path, ".pt"), tensor)
        write_atomically(_add_suffix(path, ".json"), document)
        remove_old_data(path.parent, {f"{path.name}.json", f"{path.name}.pt"})


def load_vector(path: Path) -> tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]:
    """Metadata and tensor of `path.json` and `path.pt`; `path` may carry either ending.

    Raises:
        FileNotFoundError: one of the files is missing.
        FileFormatError: a file is damaged, unsafe, of a newer version, or not a vector.
    """
    path = strip_suffix(path)
    return read_while_written(lambda: _load_vector_once(path))


def save_vector_set(directory: Path, stored: StoredSet) -> None:
    """Writes a folder: `metadata.json` for the set, `layer_N.json` and `layer_N.pt` for each layer N."""
    tensors = {layer: _tensor_bytes(vector) for layer, (_, vector) in stored.vectors.items()}
    layers = {layer: stamp(about) | {"sha256": digest(tensors[layer])} for layer, (about, _) in stored.vectors.items()}
    documents = {layer: json_bytes(about) for layer, about in layers.items()}
    whole = json_bytes(
        stamp(stored.metadata) | {"layers": sorted(layers), "vectors": {str(n): layers[n] for n in sorted(layers)}}
    )
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        old = {path.stem for path in directory.glob("layer_*.pt") if _is_layer_name(path.stem)}
        new = {_layer_name(layer) for layer in layers}
        _pin_set(directory)
        for name in old | new:
            keep_old_data(directory / f"{name}.pt")
        for layer in layers:
            write_atomically(directory / f"{_layer_name(layer)}.pt", tensors[layer])
            write_atomically(directory / f"{_layer_name(layer)}.json", documents[layer])
        write_atomically(directory / SET_FILE, whole)
        for name in old - new:
            (directory / f"{name}.json").unlink(missing_ok=True)
            (directory / f"{name}.pt").unlink(missing_ok=True)
        remove_old_data(
            directory, {f"{name}{suffix}" for name in old | new for suffix in (".json", ".pt")} | {SET_FILE}
        )


def load_vector_set(directory: Path) -> StoredSet:
    """Set metadata and, by layer, metadata and tensor. Reads folders of rotalabs-steer 1.2 too."""
    return read_while_written(lambda: _load_vector_set_once(directory))


def parse_vector(content: bytearray, path: Path) -> Float[torch.Tensor, " hidden"]:
    """The vector in the content of a `.pt` file, which it does not copy."""
    vector = parse_pickle(open_archive(content, path), path)
    if not isinstance(vector, torch.Tensor):
        raise FileFormatError(f"{path} holds a {type(vector).__name__}, expected one tensor.")
    check_vector_layout(vector, str(path))
    check_finite(vector, str(path))
    if is_part(vector):
        raise FileFormatError(f"{path} carries more data than its tensor shows.")
    return vector


def strip_suffix(path: Path) -> Path:
    """The path without a final `.json` or `.pt`."""
    return path.with_name(path.name.removesuffix(".json").removesuffix(".pt"))


def _load_vector_once(path: Path) -> tuple[dict[str, Any], torch.Tensor]:
    metadata = _read_json(_add_suffix(path, ".json"))
    return metadata, _read_tensor(path, metadata.get("sha256"))


def _load_vector_set_once(directory: Path) -> StoredSet:
    metadata = _read_json(directory / SET_FILE)
    layers = _listed_layers(metadata, directory)
    described = metadata.pop("vectors", None)
    del metadata["layers"]
    if described is None:  # 1.2
        return StoredSet(metadata, {n: _load_vector_once(directory / _layer_name(n)) for n in layers})
    if not isinstance(described, dict) or set(described) != {str(layer) for layer in layers}:
        raise FileFormatError(f"{directory / SET_FILE} does not describe the vectors it lists.")
    vectors = {}
    for layer in layers:
        about = described[str(layer)]
        if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
            raise FileFormatError(f"{directory / SET_FILE} has no SHA-256 for layer {layer}.")
        vectors[layer] = (about, _read_tensor(directory / _layer_name(layer), about["sha256"]))
    return StoredSet(metadata, vectors)


def _listed_layers(metadata: dict[str, Any], directory: Path) -> list[int]:
    layers = metadata.get("layers")
    if isinstance(layers, list) and all(type(n) is int and 0 <= n < MAX_VECTORS for n in layers):
        return layers
    raise FileFormatError(f"{directory / SET_FILE} needs 'layers': a list of layer numbers, found {layers!r:.80}.")


def _read_json(path: Path) -> dict[str, Any]:
    metadata = parse_json_object(read_bytes(path, MAX_JSON_BYTES), path)
    check_version(metadata, path)
    return metadata


def _read_tensor(path: Path, sha256: str | None) -> torch.Tensor:
    """The tensor with this digest (any, where none is named): the file itself or the copy a writer kept."""
    current = _add_suffix(path, ".pt")
    if sha256 is None:
        return parse_vector(read_bytes(current, MAX_TENSOR_BYTES), current)
    return parse_vector(read_by_digest(current, sha256, MAX_TENSOR_BYTES), current)


def _pin_vector(path: Path) -> None:
    """Gives a vector saved by 1.2 its digest before it is replaced, so that a killed writer cannot mix it up."""
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = _read_json(_add_suffix(path, ".json"))
        if "sha256" not in metadata:
            sha256 = digest(read_bytes(_add_suffix(path, ".pt"), MAX_TENSOR_BYTES))
            write_atomically(_add_suffix(path, ".json"), json_bytes(metadata | {"sha256": sha256}))


def _pin_set(directory: Path) -> None:
    """The same for a set saved by 1.2: its metadata comes to hold what its layers' files say."""
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = _read_json(directory / SET_FILE)
        if "vectors" in metadata:
            return
        described = {}
        for layer in _listed_layers(metadata, directory):
            path = directory / _layer_name(layer)
            sha256 = digest(read_bytes(_add_suffix(path, ".pt"), MAX_TENSOR_BYTES))
            described[str(layer)] = _read_json(_add_suffix(path, ".json")) | {"sha256": sha256}
        write_atomically(directory / SET_FILE, json_bytes(metadata | {"vectors": described}))


def _add_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _layer_name(layer: int) -> str:
    return f"layer_{layer}"


def _is_layer_name(name: str) -> bool:
    return re.fullmatch(r"layer_\d{1,6}", name) is not None


def _tensor_bytes(vector: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.save(vector.detach().to("cpu").clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()
