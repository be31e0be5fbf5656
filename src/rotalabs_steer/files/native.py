"""The native format: `NAME.json` (metadata) with `NAME.pt` (the tensor), and folders of them.

The `.json` file is the commit point: it names its tensor by SHA-256, so a reader can always tell whether the two
belong together (see `two_file_commit`).
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import locked, write_atomically
from rotalabs_steer.files.reading import MAX_TENSOR_BYTES, read_bytes
from rotalabs_steer.files.schema import MAX_VECTORS, StoredSet, json_bytes, read_document, stamp
from rotalabs_steer.files.torch_files import parse_vector, vector_bytes
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

    import torch
    from jaxtyping import Float

SET_FILE = "metadata.json"
_LAYER_FILE = re.compile(r"layer_\d{1,6}\.(pt|json)")


def save_vector(path: Path, metadata: Mapping[str, Any], vector: Float[torch.Tensor, " hidden"]) -> None:
    """Writes `path.json` and `path.pt`. Dots in the name stay: `qwen2.5` becomes `qwen2.5.json`."""
    path = strip_suffix(path)
    tensor = vector_bytes(vector)
    document = json_bytes(stamp(metadata) | {"sha256": digest(tensor)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        _pin_vector(path)
        keep_old_data(_add_suffix(path, ".pt"))
        write_atomically(_add_suffix(path, ".pt"), tensor)
        write_atomically(_add_suffix(path, ".json"), document)
        remove_old_data(path.parent, {f"{path.name}.json", f"{path.name}.pt"})


def load_vector(path: Path) -> tuple[dict[str, Any], Float[torch.Tensor, " hidden"]]:
    """Reads `path.json` and `path.pt`; `path` may have either ending. Raises as `SteeringVector.load`."""
    path = strip_suffix(path)
    return read_while_written(lambda: _load_vector_once(path))


def save_vector_set(directory: Path, stored: StoredSet) -> None:
    """Writes a folder: `metadata.json` for the set, `layer_N.json` and `layer_N.pt` for each layer N."""
    tensors = {layer: vector_bytes(vector) for layer, (_, vector) in stored.vectors.items()}
    layers = {n: stamp(about) | {"sha256": digest(tensors[n])} for n, (about, _) in sorted(stored.vectors.items())}
    files: dict[str, bytes] = {}
    for n, about in layers.items():
        files |= {f"layer_{n}.pt": tensors[n], f"layer_{n}.json": json_bytes(about)}
    described = {str(n): about for n, about in layers.items()}
    files[SET_FILE] = json_bytes(stamp(stored.metadata) | {"layers": list(layers), "vectors": described})
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        _pin_set(directory)
        stems = {path.stem for path in directory.iterdir() if _LAYER_FILE.fullmatch(path.name)}
        old = {f"{stem}{suffix}" for stem in stems for suffix in (".pt", ".json")}
        for stem in stems:
            keep_old_data(directory / f"{stem}.pt")
        for name, content in files.items():  # the file of the set comes last: it makes the others valid
            write_atomically(directory / name, content)
        for name in old - set(files):
            (directory / name).unlink(missing_ok=True)
        remove_old_data(directory, old | set(files))


def load_vector_set(directory: Path) -> StoredSet:
    """Reads such a folder, also one of rotalabs-steer 1.2. Raises as `read_set`."""
    return read_while_written(lambda: _load_vector_set_once(directory))


def strip_suffix(path: Path) -> Path:
    """The path without a final `.json` or `.pt`."""
    return path.with_name(path.name.removesuffix(".json").removesuffix(".pt"))


def _load_vector_once(path: Path) -> tuple[dict[str, Any], torch.Tensor]:
    metadata = read_document(_add_suffix(path, ".json"))
    return metadata, _read_tensor(path, metadata.get("sha256"))


def _load_vector_set_once(directory: Path) -> StoredSet:
    metadata = read_document(directory / SET_FILE)
    layers = _listed_layers(metadata, directory)
    described = metadata.pop("vectors", None)
    del metadata["layers"]
    if described is None:  # a set of 1.2, which describes its vectors in the files of the layers only
        return StoredSet(metadata, {n: _load_vector_once(directory / f"layer_{n}") for n in layers})
    if not isinstance(described, dict) or set(described) != {str(layer) for layer in layers}:
        raise FileFormatError(f"{directory / SET_FILE} does not describe the vectors it lists.")
    vectors = {}
    for layer in layers:
        about = described[str(layer)]
        if not isinstance(about, dict) or not isinstance(about.get("sha256"), str):
            raise FileFormatError(f"{directory / SET_FILE} has no SHA-256 for layer {layer}.")
        vectors[layer] = (about, _read_tensor(directory / f"layer_{layer}", about["sha256"]))
    return StoredSet(metadata, vectors)


def _listed_layers(metadata: dict[str, Any], directory: Path) -> list[int]:
    layers = metadata.get("layers")
    if isinstance(layers, list) and all(type(n) is int and 0 <= n < MAX_VECTORS for n in layers):
        return layers
    raise FileFormatError(f"{directory / SET_FILE} needs 'layers': a list of layer numbers, found {layers!r:.80}.")


def _read_tensor(path: Path, sha256: str | None) -> torch.Tensor:
    """The tensor with this digest; whatever the file holds for a vector of 1.2, which has no digest."""
    path = _add_suffix(path, ".pt")
    return parse_vector(read_bytes(path, MAX_TENSOR_BYTES) if sha256 is None else read_by_digest(path, sha256), path)


def _pin_vector(path: Path) -> None:
    """Writes the tensor's digest into the metadata of a vector that 1.2 saved.

    Without it, a writer that is killed while it replaces the vector would leave an old and a new file that nobody can
    tell from a pair.
    """
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = read_document(_add_suffix(path, ".json"))
        if "sha256" not in metadata:
            write_atomically(_add_suffix(path, ".json"), json_bytes(metadata | {"sha256": _digest_of(path)}))


def _pin_set(directory: Path) -> None:
    """Writes the descriptions and digests of all vectors into the metadata of a set that 1.2 saved."""
    with contextlib.suppress(FileNotFoundError, FileFormatError):
        metadata = read_document(directory / SET_FILE)
        if "vectors" in metadata:
            return
        paths = {str(layer): directory / f"layer_{layer}" for layer in _listed_layers(metadata, directory)}
        described = {
            layer: read_document(_add_suffix(path, ".json")) | {"sha256": _digest_of(path)}
            for layer, path in paths.items()
        }
        write_atomically(directory / SET_FILE, json_bytes(metadata | {"vectors": described}))


def _digest_of(path: Path) -> str:
    return digest(read_bytes(_add_suffix(path, ".pt"), MAX_TENSOR_BYTES))


def _add_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
