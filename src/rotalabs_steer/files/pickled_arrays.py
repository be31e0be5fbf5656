"""Numpy arrays that torch.save pickled, as EasySteer stores them: read without numpy, or any of its code, taking part.

numpy's own `_reconstruct` makes an array of whatever shape a file claims. Here a stand-in takes the bytes that are
there.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.archives import named_in, read_pickle

if TYPE_CHECKING:
    from pathlib import Path

_INSTRUCTIONS = frozenset({
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
})  # fmt: skip
_DTYPES = {("<", "f2"): torch.float16, ("<", "f4"): torch.float32, ("<", "f8"): torch.float64}


@dataclass(eq=False)
class _Dtype:
    """Stands in for `numpy.dtype`."""

    code: Any
    align: Any = False
    copy: Any = True
    order: Any = ""

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


@dataclass(eq=False)
class _Array:
    """Stands in for `numpy.ndarray`."""

    state: Any = field(default=())

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> torch.Tensor:
        """The numbers; ValueError if they are not what the array claims."""
        version, shape, dtype, fortran, data = self.state
        kind = _DTYPES.get((dtype.order, dtype.code)) if isinstance(dtype, _Dtype) else None
        sizes = isinstance(shape, tuple) and all(type(size) is int and size > 0 for size in shape)
        if version != 1 or kind is None or fortran is not False or not sizes or not isinstance(data, bytes):
            raise ValueError("it holds an array of other than plain numbers")
        if math.prod(shape) * kind.itemsize != len(data):
            raise ValueError(f"an array claims shape {shape!r:.80}, and has {len(data)} bytes")
        return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)


def _new_array(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes. Other encodings could take much longer than the text is."""
    if encoding != "latin1":
        raise ValueError(f"it holds bytes as {encoding!r:.40}")
    return text.encode("latin-1")


_STAND_INS = {
    "numpy._core.multiarray _reconstruct": _new_array,
    "numpy.core.multiarray _reconstruct": _new_array,
    "numpy ndarray": _Array,
    "numpy dtype": _Dtype,
    "_codecs encode": _encode,
}


class _Unpickler(pickle.Unpickler):
    """Knows the stand-ins, and nothing that exists."""

    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS[f"{module} {name}"]


def parse_pickled_arrays(content: bytes, path: Path) -> Any:
    """The tensor, or tensors in containers, of an archive that `check_archive` has passed.

    None if other things than numpy arrays are in it.

    Raises:
        FileFormatError: it is damaged, or its arrays are not plain numbers.
    """
    program = read_pickle(content, path)
    named = named_in(program, path)
    if "numpy ndarray" not in named or named - _STAND_INS.keys():
        return None
    named_in(program, path, _INSTRUCTIONS)
    try:
        return _tensors(_Unpickler(io.BytesIO(program)).load())
    except Exception as error:  # damaged input makes the unpickler raise whatever its instructions run into
        raise FileFormatError(f"{path} is not a plain file of numpy arrays: {str(error)[:200]}") from error


def _tensors(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.tensor()
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return [_tensors(item) for item in value] if isinstance(value, list | tuple) else value
