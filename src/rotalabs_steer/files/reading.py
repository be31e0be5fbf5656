"""Reading JSON and tensors from files that a stranger may have written.

Nothing in a file is executed, no path is ever taken from it, and its claims are checked before memory is spent.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.archives import check_archive, load_tensors

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_ITEMS = 100_000
"""Parsed, an item takes up to a hundred times its length in the file: what is parsed must be bounded, not only read."""

MAX_TENSOR_BYTES = 256 * 2**20
"""Far above any steering vector: a hidden size of a million in float64 takes 8 MB."""

_MAX_DIGITS = 400
"""Of an integer. A float64 has at most 309 before the point."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes, which is not a link out of its folder.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is larger, a device or a pipe, or a link to elsewhere.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileFormatError(f"{path} is larger than {limit} bytes, which no file of this kind is. Not read.")
        return file.read(size)


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a file, under the rules of `read_bytes`."""
    with _open_regular(path) as file:
        return file.read(count)


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object, without NaN, infinities, endless integers, half characters or more items than make sense."""
    items = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if items > MAX_JSON_ITEMS:
        raise FileFormatError(f"{path} holds about {items:,} JSON items, more than {MAX_JSON_ITEMS:,}. Not parsed.")
    try:
        value = json.loads(
            content.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
        if re.search(rb"\\u[dD][89a-fA-F]", content):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def parse_vector(content: bytes, path: Path) -> torch.Tensor:
    """The one-dimensional floating-point tensor in the content of a `.pt` file.

    The file is first loaded without its data (on the meta device), so that a small file which claims a huge tensor
    is refused before anything is allocated.
    """
    check_archive(content, path)
    claimed = load_tensors(content, path, "meta")
    if not isinstance(claimed, torch.Tensor):
        raise FileFormatError(f"{path} holds a {type(claimed).__name__}, expected one tensor.")
    check_vector_layout(claimed, str(path))
    if claimed.numel() * claimed.element_size() > len(content):
        raise FileFormatError(f"{path} claims {claimed.numel()} numbers, more than its {len(content)} bytes can hold.")
    vector: torch.Tensor = load_tensors(content, path, "cpu")
    check_finite(vector, str(path))
    if vector.untyped_storage().nbytes() > vector.numel() * vector.element_size():
        raise FileFormatError(f"{path} carries more data than its tensor shows.")
    return vector.detach()


def check_vector_layout(vector: torch.Tensor, source: str) -> None:
    """Refuses every tensor that is not a dense, contiguous, non-empty, one-dimensional one of real numbers."""
    if vector.layout is not torch.strided or vector.is_quantized:
        raise FileFormatError(f"{source} holds a {vector.layout} tensor, expected a dense one.")
    if vector.dim() != 1 or vector.numel() == 0:
        raise FileFormatError(f"{source} holds a tensor of shape {list(vector.shape)}, expected [hidden].")
    if not vector.dtype.is_floating_point:
        raise FileFormatError(f"{source} holds {vector.dtype}, expected floating-point numbers.")
    if not vector.is_contiguous():
        raise FileFormatError(f"{source} holds a tensor with stride {vector.stride()}, expected a contiguous one.")


def check_finite(vector: torch.Tensor, source: str) -> None:
    """Refuses NaN and infinities."""
    if not is_finite(vector):
        raise FileFormatError(f"{source} holds NaN or infinite numbers; such a vector destroys generation.")


def _open_regular(path: Path) -> BinaryIO:
    _check_link(path)
    no_waiting = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its writer
    file = os.fdopen(os.open(path, os.O_RDONLY | no_waiting | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileFormatError(f"{path} is not a regular file. Not read.")
    return file


def _check_link(path: Path) -> None:
    """Refuses a link that leads out of its folder, but for the blobs of the Hugging Face cache."""
    if not path.is_symlink():
        return
    try:
        folder, target = path.parent.resolve(), path.resolve()
    except (RuntimeError, OSError) as error:
        raise FileFormatError(f"{path} is a link that leads nowhere: {error}") from error
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    allowed = [folder] if snapshots is None else [folder, snapshots.with_name("blobs")]
    if not any(target.is_relative_to(place) for place in allowed):
        raise FileFormatError(f"{path} is a link to {target}, outside its folder. Not read: name that file itself.")


def is_finite(vector: torch.Tensor) -> bool:
    """Whether all numbers are finite, found out in pieces: `isfinite` needs as much memory as it is given."""
    flat = vector.reshape(-1)
    return all(bool(torch.isfinite(flat[start : start + 2**16]).all()) for start in range(0, len(flat), 2**16))


def _parse_integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits")
    return int(text)


def _parse_float(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text:.40} is beyond all floating-point numbers")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
