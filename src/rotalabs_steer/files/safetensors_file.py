"""A vector set in one safetensors file: tensors `layer_N`, and the document in the header's metadata.

The safetensors library writes the file. It is read here: everything that the header claims is checked against the size
of the file, and the tensors share the memory of what was read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeGuard

import safetensors.torch
import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.atomic import locked, remove_strays, write_atomically
from rotalabs_steer.files.reading import (
    MAX_JSON_BYTES,
    MAX_TENSOR_BYTES,
    check_finite,
    numbers_in,
    parse_json_object,
    read_bytes,
)
from rotalabs_steer.files.schema import MAX_VECTORS, StoredSet, check_version, json_bytes, stamp

if TYPE_CHECKING:
    from pathlib import Path

_KEY = "rotalabs_steer"
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_safetensors_set(path: Path, stored: StoredSet) -> None:
    """Writes the set, atomically."""
    content = safetensors_set_bytes(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        write_atomically(path, content)
        remove_strays(path.parent, {path.name})


def load_safetensors_set(path: Path) -> StoredSet:
    """Reads such a file. Raises as `read_set`."""
    return parse_safetensors_set(read_bytes(path, MAX_TENSOR_BYTES), path)


def safetensors_set_bytes(stored: StoredSet) -> bytes:
    """The content of a file that holds the set."""
    document = stamp(stored.metadata) | {"vectors": {str(n): about for n, (about, _) in sorted(stored.vectors.items())}}
    tensors = {  # copies, because safetensors refuses tensors that share memory
        f"layer_{layer}": tensor.detach().to("cpu").contiguous().clone()
        for layer, (_, tensor) in sorted(stored.vectors.items())
    }
    return safetensors.torch.save(tensors, {"format": "pt", _KEY: json_bytes(document).decode()})


def parse_safetensors_set(content: bytearray, path: Path) -> StoredSet:
    """The set in the content of such a file."""
    tensors, about = parse_safetensors(content, path)
    text = about.get(_KEY)
    if text is None:
        raise FileFormatError(
            f"{path} is not a vector set of this package: its header has no {_KEY!r}. Use import_vectors for other "
            "files."
        )
    document = parse_json_object(text.encode(), path)
    check_version(document, path)
    described: Any = document.pop("vectors", None)
    if not isinstance(described, dict) or {f"layer_{layer}" for layer in described} != set(tensors):
        raise FileFormatError(f"{path} does not describe the tensors it holds.")
    vectors = {}
    for layer, facts in described.items():
        if not isinstance(facts, dict) or not re.fullmatch(r"0|[1-9]\d{0,5}", layer):
            raise FileFormatError(f"{path} describes layer {layer!r:.40} by {facts!r:.80}.")
        vectors[int(layer)] = (facts, tensors[f"layer_{layer}"])
    return StoredSet(document, vectors)


def looks_like_safetensors(start: bytes | bytearray) -> bool:
    """Whether the first nine bytes of a file could be those of a safetensors file."""
    return len(start) > _LENGTH_BYTES and start[_LENGTH_BYTES:][:1] == b"{" and start[4:_LENGTH_BYTES] == bytes(4)


def looks_like_safetensors_set(start: bytes) -> bool:
    """Whether the first 256 bytes of a file are those of a set: the safetensors library puts the metadata first."""
    return looks_like_safetensors(start) and f'"{_KEY}":'.encode() in start


def parse_safetensors(content: bytearray, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Vectors by name, and the header's metadata, of any safetensors file that holds only vectors."""
    header, data = _checked_header(content, path)
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise FileFormatError(f"{path}: the metadata of a safetensors header is text by name.")
    tensors = {
        name: numbers_in(data[slice(*entry["data_offsets"])], _DTYPES[entry["dtype"]]) for name, entry in header.items()
    }
    for name, tensor in tensors.items():
        check_finite(tensor, f"{path}, {name!r:.80}")
    return tensors, about


def _checked_header(content: bytearray, path: Path) -> tuple[dict[str, Any], memoryview]:
    """The header, after a check of all its claims, and the data behind it."""
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if len(content) < _LENGTH_BYTES or end > len(content):
        raise FileFormatError(f"{path} is not a safetensors file: {len(content)} bytes, a header of {length} claimed.")
    if length > MAX_JSON_BYTES:
        raise FileFormatError(f"{path} has a header of {length:,} bytes; {MAX_JSON_BYTES:,} are allowed. Not parsed.")
    header = parse_json_object(content[_LENGTH_BYTES:end], path)
    names = set(header) - {"__metadata__"}
    if not 0 < len(names) <= MAX_VECTORS:
        raise FileFormatError(f"{path} holds {len(names):,} tensors, expected 1 to {MAX_VECTORS:,}.")
    spans = sorted(_span(header[name], f"{path}, {name!r:.80}") for name in names)
    starts, ends = zip(*spans, strict=True)
    # Tensors that follow each other without a gap cannot claim more memory than the file has.
    if starts != (0, *ends[:-1]) or ends[-1] != len(content) - end:
        raise FileFormatError(f"{path}: the tensors do not fill the {len(content) - end} bytes behind the header.")
    return header, memoryview(content)[end:]


def _span(entry: Any, source: str) -> tuple[int, int]:
    """Where the numbers of a vector begin and end."""
    known = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = known.get("dtype"), known.get("shape"), known.get("data_offsets")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise FileFormatError(f"{source}: the header does not say what it holds: {entry!r:.120}")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FileFormatError(f"{source} holds {dtype!r:.20}, expected one of {', '.join(_DTYPES)}.")
    if len(shape) != 1 or shape[0] == 0:
        raise FileFormatError(f"{source} holds a tensor of shape {shape!r:.80}, expected [hidden].")
    if offsets[1] - offsets[0] != shape[0] * _DTYPES[dtype].itemsize:
        raise FileFormatError(f"{source} claims {shape[0]} numbers in {offsets[1] - offsets[0]} bytes.")
    return offsets[0], offsets[1]


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
