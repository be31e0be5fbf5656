"""Reading JSON and tensors from files that a stranger may have written.

Nothing in a file is executed, no path is ever taken from it, and its claims are checked before memory is spent.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError

if TYPE_CHECKING:
    from pathlib import Path

MAX_JSON_BYTES = 16 * 2**20
MAX_TENSOR_BYTES = 256 * 2**20
"""Far above any steering vector: a hidden size of a million in float64 takes 8 MB."""


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileFormatError(f"{path} is larger than {limit} bytes, which no file of this kind is. Not read.")
    return content


def parse_json_object(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object, without NaN, infinities or anything else that JSON does not have."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
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
    _check_archive(content, path)
    claimed = _load(content, path, "meta")
    if not isinstance(claimed, torch.Tensor):
        raise FileFormatError(f"{path} holds a {type(claimed).__name__}, expected one tensor.")
    check_vector_layout(claimed, str(path))
    if claimed.numel() * claimed.element_size() > len(content):
        raise FileFormatError(f"{path} claims {claimed.numel()} numbers, more than its {len(content)} bytes can hold.")
    vector: torch.Tensor = _load(content, path, "cpu")
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
    if not bool(torch.isfinite(vector).all()):
        raise FileFormatError(f"{source} holds NaN or infinite numbers; such a vector destroys generation.")


def _load(content: bytes, path: Path, device: str) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise FileFormatError(f"{path} is not a plain PyTorch tensor file: {reason}") from error
    except (IndexError, OSError, MemoryError, RecursionError, AssertionError, NotImplementedError) as error:
        raise FileFormatError(f"{path} is damaged: {type(error).__name__}") from error


def _check_archive(content: bytes, path: Path) -> None:
    """A `.pt` file is an uncompressed zip archive whose members add up to no more than its own size."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise FileFormatError(f"{path} is not a PyTorch file (a zip archive written by torch.save).") from error
    if unpacked > len(content):
        raise FileFormatError(f"{path} would unpack to {unpacked} bytes from {len(content)}. Not read.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
