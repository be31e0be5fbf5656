"""Reading JSON and numbers from files that a stranger may have written.

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

from rotalabs_steer.errors import FileFormatError, VectorError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader
    from pathlib import Path

MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_ITEMS = 100_000
"""A parsed item takes up to a hundred times its length in the file, so a limit on the length is not enough."""

MAX_TENSOR_BYTES = 256 * 2**20
"""Far above any steering vector: a hidden size of a million in float64 takes 8 MB."""

_MAX_DIGITS = 400
"""The longest integer that is read. A float64 has at most 309 digits before the point."""


def read_bytes(path: Path, limit: int) -> bytearray:
    """The content of a regular file of at most `limit` bytes, which is not a link out of its folder.

    Raises:
        FileNotFoundError: there is no such file.
        FileFormatError: it is larger, a device or a pipe, a link out of its folder, or a pointer of Git LFS.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise FileFormatError(f"{path} is larger than {limit} bytes, which no file of this kind is. Not read.")
        content = bytearray(size)
        del content[file.readinto(content) :]  # the file may have become shorter
        return content


def read_start(path: Path, count: int) -> bytes:
    """The first bytes of a file, under the rules of `read_bytes`."""
    with _open_regular(path) as file:
        return file.read(count)


def parse_json_object(content: bytes | bytearray, path: Path, max_items: int = MAX_JSON_ITEMS) -> dict[str, Any]:
    """A JSON object in UTF-8.

    Raises:
        FileFormatError: it is not one, or it has NaN, infinities, integers of over 400 digits, lone surrogates or more
            than `max_items` items.
    """
    # Every item of a list or an object is preceded by one of these, so their number is known before anything is parsed.
    items = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if items > max_items:
        raise FileFormatError(f"{path} holds about {items:,} JSON items, more than {max_items:,}. Not parsed.")
    try:
        value = json.loads(
            content.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_int=_parse_integer,
            parse_float=_parse_float,
        )
        if re.search(rb"\\u[dD][89a-fA-F]", content):  # surrogates, which are valid in pairs only
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def numbers_in(content: bytearray | memoryview, dtype: torch.dtype) -> torch.Tensor:
    """The numbers in a file's content. They share its memory unless they begin where some processors cannot read."""
    if not content:
        return torch.empty(0, dtype=dtype)
    numbers = torch.frombuffer(content, dtype=dtype)
    aligned = numbers.data_ptr() % dtype.itemsize == 0
    return numbers if aligned else torch.frombuffer(bytearray(content), dtype=dtype)


def check_finite(vector: torch.Tensor, source: str) -> None:
    """Refuses NaN and infinities."""
    if not is_finite(vector):
        raise FileFormatError(f"{source} holds NaN or infinite numbers; such a vector destroys generation.")


def is_finite(vector: torch.Tensor) -> bool:
    """Whether all numbers are finite."""
    return all(bool(torch.isfinite(piece).all()) for piece in _pieces(vector))


def check_carried(vector: torch.Tensor, dtype: torch.dtype, what: str) -> None:
    """Refuses a vector that does nothing, or does harm, once it is converted to a dtype.

    Raises:
        VectorError: the vector is zero, or becomes zero or infinite in that dtype.
    """
    held = vector.detach().to(dtype)
    if not is_finite(held):
        raise VectorError(
            f"{what} has numbers that {dtype} cannot hold: they become infinite. Use a smaller strength or vector."
        )
    if not held.any():
        reason = f"becomes zero in {dtype}" if vector.any() else "is zero"
        raise VectorError(f"{what} {reason}, so it would do nothing. Use a larger strength, or another vector.")


def l2_norm(vector: torch.Tensor) -> float:
    """The L2 norm, computed in float64."""
    return math.hypot(*(float(torch.linalg.vector_norm(piece, dtype=torch.float64)) for piece in _pieces(vector)))


def is_part(vector: torch.Tensor) -> bool:
    """Whether the vector's storage holds more numbers than the vector. `torch.save` would write all of them."""
    return vector.untyped_storage().nbytes() > vector.nbytes


def _pieces(vector: torch.Tensor) -> Sequence[torch.Tensor]:
    """The numbers in parts, because a computation over all of them at once needs as much memory again."""
    return torch.split(vector.reshape(-1), 2**16)


def _open_regular(path: Path) -> BufferedReader:
    _check_link(path)
    no_waiting = getattr(os, "O_NONBLOCK", 0)  # otherwise opening a pipe would wait for its writer
    file = os.fdopen(os.open(path, os.O_RDONLY | no_waiting | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileFormatError(f"{path} is not a regular file. Not read.")
    if file.peek().startswith(b"version https://git-lfs"):
        file.close()
        raise FileFormatError(f"{path} is a pointer of Git LFS, not the file itself. Fetch that with `git lfs pull`.")
    return file


def _check_link(path: Path) -> None:
    """Refuses a link that leads out of its folder. In the Hugging Face cache it may lead to the folder of blobs."""
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
