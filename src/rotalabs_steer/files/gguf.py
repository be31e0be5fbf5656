"""GGUF control vectors: the files that llama.cpp loads with `--control-vector` and that repeng writes.

`direction.N` is added to the output of the 0-based decoder layer N, so N is our layer index. llama.cpp never steers
layer 0 and refuses a file that has a direction for it. EasySteer writes one and steers it, so it is read but not
written.

The `gguf` package writes the files. Its reader trusts every count and length that a file claims, so files are read by
the functions below, which need one page of the format and do no more work than the size of the file allows.
"""

from __future__ import annotations

import math
import re
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError, LayerError, missing_dependency
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.files.reading import MAX_TENSOR_BYTES, check_finite, numbers_in, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float

ARCHITECTURE = "controlvector"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 4096
_MAX_LAYER = 9999
_MAX_ALIGNMENT = 2**16
_FLOAT32 = 0
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,3})")


@dataclass(frozen=True, eq=False)
class ControlVector:
    """The content of a control-vector file.

    Attributes:
        directions: by 0-based decoder layer, `[hidden]` in fp32.
        model_hint: the architecture that the file says it is for, by llama.cpp's name; may be empty.
        metadata: the other strings and numbers in the file's header.
    """

    directions: Mapping[int, Float[torch.Tensor, " hidden"]]
    model_hint: str = ""
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def write_control_vector(path: Path, control_vector: ControlVector) -> None:
    """Writes a GGUF control vector, atomically.

    Raises:
        LayerError: it has a direction for layer 0, or has no direction.
        MissingDependencyError: the package `gguf` is not installed.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        raise missing_dependency("Writing GGUF files", "gguf", error) from error
    check_layers(control_vector.directions)
    with tempfile.TemporaryDirectory() as directory:
        draft = Path(directory) / "draft.gguf"
        writer = GGUFWriter(draft, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", control_vector.model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(control_vector.directions))
        for key, value in control_vector.metadata.items():
            _add(writer, key, value)
        for layer, direction in sorted(control_vector.directions.items()):
            writer.add_tensor(f"direction.{layer}", direction.detach().float().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, draft.read_bytes())


def check_layers(layers: Mapping[int, Any]) -> None:
    """Refuses layers that the format cannot express and llama.cpp cannot steer.

    Raises:
        LayerError: layer 0 is among them, or there are none.
    """
    if not layers:
        raise LayerError("No layer is steered: there is nothing that a control vector could hold.")
    if 0 in layers:
        raise LayerError(
            "llama.cpp cannot steer layer 0, and its loader refuses a file that has a direction for it. "
            "Choose another layer, or steer with another engine."
        )


def read_control_vector(path: Path, layer_offset: int = 0) -> ControlVector:
    """Reads a GGUF control vector, which a stranger may have written.

    Args:
        layer_offset: added to the N of `direction.N`. 0 is right for files of repeng and of this package, and gives the
            layers that llama.cpp steers. −1 gives the layers that llama.cpp's own `llama-cvector-generator` measured:
            it calls the output of layer N `direction.N+1`.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is damaged, unsafe or not a control vector.
    """
    return parse_control_vector(read_bytes(path, MAX_TENSOR_BYTES), path, layer_offset)


def parse_control_vector(content: bytearray, path: Path, layer_offset: int = 0) -> ControlVector:
    """The control vector in the bytes of a file; `path` is for errors. See `read_control_vector`."""
    try:
        metadata, tensors, data_start = _read_header(_Cursor(memoryview(content)))
    except (ValueError, struct.error) as error:
        raise FileFormatError(f"{path} is not a GGUF control vector: {error}") from error
    architecture = metadata.pop("general.architecture", None)
    if architecture != ARCHITECTURE:
        raise FileFormatError(f"{path} is a GGUF file of {architecture!r:.80}, expected {ARCHITECTURE!r}.")
    directions: dict[int, torch.Tensor] = {}
    for name, (shape, kind, offset) in tensors.items():
        match = _DIRECTION.fullmatch(name)
        if match is None:
            raise FileFormatError(f"{path} holds a tensor {name!r:.80}, expected only direction.0, direction.1, …")
        layer = int(match[1]) + layer_offset
        if not 0 <= layer <= _MAX_LAYER:
            raise FileFormatError(
                f"{path}: {name} with layer offset {layer_offset} is layer {layer}, which does not exist."
            )
        directions[layer] = _direction(content, shape, kind, data_start + offset, f"{path}: {name}")
    if not directions:
        raise FileFormatError(f"{path} holds no directions.")
    if len({len(direction) for direction in directions.values()}) > 1:
        raise FileFormatError(f"{path} holds directions of different lengths.")
    hint = metadata.pop(f"{ARCHITECTURE}.model_hint", "")
    metadata.pop(f"{ARCHITECTURE}.layer_count", None)  # writers do not agree on what it counts
    return ControlVector(dict(sorted(directions.items())), str(hint), metadata)


@dataclass
class _Cursor:
    """A position in the file's bytes, which never goes past their end."""

    content: memoryview
    position: int = 0

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.content):
            raise ValueError("it ends in the middle of its header")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> str:
        return str(self.take(self.number("<Q")), "utf-8")

    def count(self, what: str) -> int:
        count = int(self.number("<Q"))
        if count > _MAX_ENTRIES:
            raise ValueError(f"it claims {count} {what}, more than {_MAX_ENTRIES}")
        return count


_Tensors = dict[str, tuple[tuple[int, ...], int, int]]


def _read_header(cursor: _Cursor) -> tuple[dict[str, Any], _Tensors, int]:
    """Key-value pairs, tensors by name as (shape, type, offset), and the byte at which the tensors' data starts."""
    if cursor.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = cursor.number("<I")
    if version not in _VERSIONS:
        raise ValueError(f"its format version is {version}, not {_VERSIONS[0]} or {_VERSIONS[1]}, little-endian")
    tensor_count, pair_count = cursor.count("tensors"), cursor.count("header entries")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key, value = cursor.text(), _read_value(cursor)
        if value is not None:
            metadata[key] = value
    tensors: _Tensors = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("<I")
        if dimensions > 4:
            raise ValueError(f"a tensor claims {dimensions} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))
        if name in tensors:
            raise ValueError(f"it has two tensors {name!r:.80}")
        tensors[name] = (shape, cursor.number("<I"), cursor.number("<Q"))
    alignment = metadata.pop("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT:
        raise ValueError(f"its alignment is {alignment!r:.80}")
    return metadata, tensors, math.ceil(cursor.position / alignment) * alignment


def _read_value(cursor: _Cursor) -> Any:
    """A string or number; None for an array, which is skipped because no control vector needs one."""
    kind = cursor.number("<I")
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind != _ARRAY:
        raise ValueError(f"a header entry has type {kind}, which does not exist")
    inner = cursor.number("<I")
    if inner in _SCALARS:
        cursor.take(cursor.number("<Q") * struct.calcsize(_SCALARS[inner]))  # a view, so a false length costs nothing
    elif inner == _STRING:
        for _ in range(cursor.count("texts in a list")):
            cursor.text()
    else:
        raise ValueError(f"a list has elements of type {inner}")
    return None


def _direction(content: bytearray, shape: tuple[int, ...], kind: int, start: int, source: str) -> torch.Tensor:
    if kind != _FLOAT32:
        raise FileFormatError(f"{source} has GGUF type {kind}, expected 32-bit floats (type 0).")
    if len(shape) != 1 or shape[0] == 0:
        raise FileFormatError(f"{source} has shape {list(shape)}, expected [hidden].")
    if start + 4 * shape[0] > len(content):
        raise FileFormatError(f"{source} claims {shape[0]} numbers at byte {start}, past the end of the file.")
    direction = numbers_in(memoryview(content)[start : start + 4 * shape[0]], torch.float32)
    check_finite(direction, source)
    return direction


def _add(writer: Any, key: str, value: str | float | bool) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    else:
        writer.add_string(key, value)
