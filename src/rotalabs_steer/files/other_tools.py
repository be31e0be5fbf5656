"""Vector files of other tools, as tensors by the layer number that the file gives them. Nothing in a file is executed.

These kinds of files can be read:

- `.pt`, `.pth` or `.bin` with a tensor or numpy array, a dict or list of them, or a pickled `SteeringVector` of
  steering-vectors;
- `.npy` and `.npz`;
- safetensors with one number in each tensor's name;
- GGUF control vectors.
"""

from __future__ import annotations

import ast
import math
import re
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError, VectorError
from rotalabs_steer.files.gguf import read_control_vector
from rotalabs_steer.files.reading import MAX_TENSOR_BYTES, numbers_in, read_bytes, read_start
from rotalabs_steer.files.safetensors_file import looks_like_safetensors, parse_safetensors
from rotalabs_steer.files.schema import MAX_VECTORS
from rotalabs_steer.files.torch_files import PickledSteeringVector, open_archive, parse_pickle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LAYER_NAME = re.compile(
    r"(?:(?:[a-z_]+\.)*(?:layers?|blocks?|h)[._]?)?(?P<number>\d{1,6})"
    r"(?:[._](?P<place>vector|direction|output|residual|hook_resid_pre|hook_resid_post))?",
    re.IGNORECASE,
)
_PART_NAME = re.compile(
    r"\d.*(mlp|attn|attention|ffn|resid_mid|norm|hook_[qkvz])|(mlp|attn|attention|ffn).*\d", re.IGNORECASE
)
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK\x03\x04"
_NPY_DTYPES = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}
_MAX_NPY_HEADER = 10_000


def read_other_tool(path: Path) -> Any:
    """What another tool's file holds: a tensor, tensors by layer, a `PickledSteeringVector` or a `ControlVector`.

    Raises:
        FileFormatError: it is of an unknown kind, unsafe or damaged.
        VectorError: its vectors do not belong to a decoder layer's output.
    """
    if read_start(path, 4) == b"GGUF":
        return read_control_vector(path)
    return parse_other_tool(read_bytes(path, MAX_TENSOR_BYTES), path)


def parse_other_tool(content: bytearray, path: Path) -> Any:
    """As `read_other_tool`, of a file's content; but GGUF files are unknown here."""
    if content.startswith(_NPY_MAGIC):
        return _parse_npy(memoryview(content), str(path))
    if content.startswith(_ZIP_MAGIC):
        members = open_archive(content, path)
        if members and all(name.endswith(".npy") for name in members):
            return _parse_npz(members, path)
        return _parse_pickle(members, path, len(content))
    if looks_like_safetensors(content[:16]):
        tensors, _ = parse_safetensors(content, path)
        return _by_number(tensors, path)
    raise FileFormatError(
        f"{path} is not a vector file that can be read safely. These can: safetensors, GGUF control vectors, .npy, "
        ".npz, and .pt files of torch.save (not of pickle.dump: reading such a file runs code)."
    )


def _by_number(tensors: Mapping[str, Any], path: Path) -> dict[int, Any]:
    """Tensors by the decoder layer that their names give, as in `14`, `layer_14`, `model.layers.14` or `blocks.14`.

    TransformerLens' `hook_resid_pre` of a block is the output of the block before it.
    """
    found: dict[int, Any] = {}
    for name, tensor in tensors.items():
        named = _LAYER_NAME.fullmatch(name)
        if named is None and _PART_NAME.search(name):
            raise VectorError(
                f"These vectors were read at {name!r:.80}. Only those of a decoder layer's output can be added to it."
            )
        layer = int(named["number"]) - (named["place"] == "hook_resid_pre") if named else -1
        if layer < 0 or layer in found:
            raise FileFormatError(
                f"{path}: the tensor {name!r:.80} does not name one layer of its own, as layer_14, model.layers.14 and "
                "blocks.14.hook_resid_post do. Read the file yourself and pass {layer: tensor}."
            )
        found[layer] = tensor
    return found


def _parse_pickle(members: Mapping[str, memoryview], path: Path, size: int) -> Any:
    loaded = parse_pickle(members, path)
    _check_tensors(loaded, path, size)
    if isinstance(loaded, dict) and loaded and all(isinstance(key, str) for key in loaded):
        return _by_number(loaded, path)
    return dict(enumerate(loaded)) if isinstance(loaded, list | tuple) else loaded


def _check_tensors(value: Any, path: Path, size: int) -> None:
    """Refuses anything but one tensor or one tensor a layer, and tensors that claim more data than the file has."""
    if isinstance(value, PickledSteeringVector):
        value = value.layer_activations
    tensors = [value]
    if isinstance(value, dict | list | tuple):
        tensors = list(value.values() if isinstance(value, dict) else value)
    if not 0 < len(tensors) <= MAX_VECTORS or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise FileFormatError(f"{path} holds a {type(value).__name__}, expected tensors: one, or one a layer.")
    for tensor in tensors:
        if not tensor.dtype.is_floating_point:
            raise FileFormatError(f"{path} holds a tensor of {tensor.dtype}, expected floating-point numbers.")
        if not tensor.is_contiguous():
            raise FileFormatError(f"{path} holds a tensor with stride {tensor.stride()}, expected a contiguous one.")
    if sum(tensor.nbytes for tensor in tensors) > size:  # tensors may show the same numbers many times
        raise FileFormatError(f"{path} claims more numbers than its {size} bytes can hold.")


def _parse_npz(members: Mapping[str, memoryview], path: Path) -> dict[int, torch.Tensor]:
    if len(members) > MAX_VECTORS:
        raise FileFormatError(f"{path} holds {len(members):,} arrays, at most {MAX_VECTORS:,} are read.")
    arrays = {name: _parse_npy(member, f"{path}, {name!r:.80}") for name, member in members.items()}
    return _by_number({name.removesuffix(".npy"): array for name, array in arrays.items()}, path)


def _parse_npy(content: memoryview, source: str) -> torch.Tensor:
    """An array of real numbers, in the layout that numpy documents as format 1.0 to 3.0; never an object array."""
    width = 2 if content[6:7].tobytes() == b"\x01" else 4  # the bytes in which version 1 and later ones give the length
    begin = len(_NPY_MAGIC) + 2 + width
    end = begin + int.from_bytes(content[begin - width : begin], "little")
    try:
        if content[: len(_NPY_MAGIC)] != _NPY_MAGIC or not begin < end <= min(len(content), begin + _MAX_NPY_HEADER):
            raise ValueError("no header")
        header = ast.literal_eval(str(content[begin:end], "utf-8").strip())
        dtype, shape = header["descr"], header["shape"]
        sizes = isinstance(shape, tuple) and all(type(size) is int and 0 < size < 2**40 for size in shape)
        if dtype not in _NPY_DTYPES or header["fortran_order"] or not sizes or not 0 < len(shape) <= 2:
            raise ValueError(f"it holds {dtype!r:.40} of shape {shape!r:.80}, expected real numbers, [hidden]")
        if math.prod(shape) * _NPY_DTYPES[dtype].itemsize != len(content) - end:
            raise ValueError(f"it claims shape {shape}, and has {len(content) - end} bytes")
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise FileFormatError(f"{source} is not an array of numbers: {str(error)[:200]}") from error
    return numbers_in(content[end:], _NPY_DTYPES[dtype]).reshape(shape)
