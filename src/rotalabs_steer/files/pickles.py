"""The pickles in files of torch.save, read by a machine that can build vectors and nothing else.

Python's unpickler calls whatever a file names. torch's restricted one calls some hundred functions, and one of them,
`bytearray`, takes any amount of memory in three instructions. Here a file's instructions are carried out on plain
values: a name is only a name, the few calls that make tensors and numpy arrays are known, and all others are refused.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, cast

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.archives import open_archive
from rotalabs_steer.files.reading import ByteFile, numbers_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_INSTRUCTIONS = 50_000
"""A tensor takes 40. An instruction of one byte can make an object of hundreds."""

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_STORAGES = {
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch ByteStorage": torch.uint8,
    "torch CharStorage": torch.int8,
    "torch ShortStorage": torch.int16,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
    "torch BoolStorage": torch.bool,
}
_ARRAY_DTYPES = {("<", "f2"): torch.float16, ("<", "f4"): torch.float32, ("<", "f8"): torch.float64}
_STEERING_VECTOR = "steering_vectors.steering_vector SteeringVector"


@dataclass(eq=False)
class PickledSteeringVector:
    """What a pickled `SteeringVector` of steering-vectors holds."""

    layer_activations: Any = field(default_factory=dict)
    layer_type: Any = "decoder_block"


def parse_torch_file(content: bytearray, path: Path) -> Any:
    """What torch.save wrote, of tensors, numpy arrays (as tensors), containers and a `PickledSteeringVector`.

    Tensors are not copied out of the content. Containers are as the file has them: check what is in them.

    Raises:
        FileFormatError: it is damaged, or holds anything else.
    """
    return parse_pickle(open_archive(content, path), path)


def parse_pickle(members: Mapping[str, memoryview], path: Path) -> Any:
    """The same of the members of its archive."""
    pickles = [name for name in members if name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise FileFormatError(f"{path} is not a PyTorch file: it holds {len(pickles)} pickles, expected one.")
    program, folder = members[pickles[0]], pickles[0].removesuffix("data.pkl")
    if len(program) > _MAX_PICKLE_BYTES:
        raise FileFormatError(
            f"{path} has a pickle of {len(program):,} bytes, more than {_MAX_PICKLE_BYTES:,}. Not read."
        )
    if bytes(members.get(f"{folder}byteorder", b"little")[:6]) != b"little":
        raise FileFormatError(f"{path} was written on a big-endian machine. Save it again on another.")
    storages = {name.removeprefix(f"{folder}data/"): data for name, data in members.items()}
    try:
        return _with_tensors(_Machine(storages).run(ByteFile(program, limit=_MAX_PICKLE_BYTES)))
    except _UnknownError as unknown:
        raise FileFormatError(
            f"{path} is not a plain PyTorch tensor file: it holds more than plain tensors, and reading that could run "
            f"code ({str(unknown)[:200]})"
        ) from unknown
    except Exception as error:  # of a damaged pickle: whatever its instructions run into
        raise FileFormatError(f"{path} is not a plain PyTorch tensor file: {str(error)[:200]}") from error


class _UnknownError(Exception):
    """A pickle names or does what vectors do not need."""


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, as "module name"."""

    text: str


@dataclass(eq=False)
class _Dtype:
    """What a pickle says of a numpy dtype."""

    code: str
    order: str = ""


@dataclass(eq=False)
class _Array:
    """What a pickle says of a numpy array."""

    state: Any = ()

    def tensor(self) -> torch.Tensor:
        version, shape, dtype, fortran, data = self.state
        kind = _ARRAY_DTYPES.get((dtype.order, dtype.code)) if isinstance(dtype, _Dtype) else None
        if version != 1 or kind is None or fortran is not False or not _are_sizes(shape) or type(data) is not bytearray:
            raise ValueError("it holds an array of other than plain numbers")
        if math.prod(shape) * kind.itemsize != len(data):
            raise ValueError(f"an array claims shape {shape!r:.80}, and has {len(data)} bytes")
        return numbers_in(data, kind).reshape(shape)


class _Machine:
    """The stack, marks and memo that a pickle's instructions work on."""

    def __init__(self, storages: Mapping[str, memoryview]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: ByteFile) -> Any:
        """What the program leaves on the stack."""
        for count, (code, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", program))):
            if count >= _MAX_INSTRUCTIONS:
                raise ValueError(f"its pickle has more than {_MAX_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                break
            self.step(code.name, argument)
        return self.stack.pop()

    def step(self, instruction: str, argument: Any) -> None:  # noqa: PLR0912 (a case for each instruction)
        """Carries out one instruction, as `pickletools` names and documents it."""
        stack = self.stack
        match instruction:
            case "PROTO":
                pass
            case _ if instruction in _CONSTANTS:
                stack.append(_CONSTANTS[instruction])
            case _ if instruction in _LITERALS:
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self.take_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.take(int(instruction[-1]))))
            case "APPEND":
                _extend(stack[-2], self.take(1))
            case "SETITEM":
                _extend(stack[-3], self.take(2))
            case "APPENDS" | "SETITEMS":
                items = self.take_marked()
                _extend(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(_known(argument))
            case "BINPERSID":
                stack.append(self.storage(*stack.pop()))
            case "REDUCE" | "NEWOBJ":
                name, arguments = self.take(2)
                stack.append(_call(name, arguments))
            case "BUILD":
                (state,) = self.take(1)
                _build(stack[-1], state)
            case _:
                raise _UnknownError(instruction)

    def take(self, count: int) -> list[Any]:
        """The last values, off the stack."""
        if len(self.stack) < count:
            raise ValueError("its pickle takes more than it has")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def take_marked(self) -> list[Any]:
        """The values since the last mark, off the stack."""
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def storage(self, kind: Any, name: Any, key: Any, location: Any, count: Any) -> torch.Tensor:
        """The numbers in a member of the archive. Where they once were, on the CPU or a GPU, does not matter."""
        dtype = _STORAGES.get(name.text) if isinstance(name, _Name) else None
        data = self.storages.get(key) if isinstance(key, str) else None
        if kind != "storage" or dtype is None or data is None or type(count) is not int:
            raise ValueError("it refers to data that it does not have")
        if count * dtype.itemsize != len(data):
            raise ValueError(f"it claims {count} numbers of {dtype}, and has {len(data)} bytes")
        return numbers_in(data, dtype)


def _known(name: str) -> _Name:
    if name not in _CALLS and name not in _STORAGES and name != "numpy ndarray":
        raise _UnknownError(name)
    return _Name(name)


def _call(name: Any, arguments: Any) -> Any:
    if not isinstance(name, _Name) or name.text not in _CALLS or type(arguments) is not tuple:
        raise ValueError("its pickle calls what cannot be called")
    return _CALLS[name.text](*arguments)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
    plain = type(offset) is int and _are_sizes(size) and _are_sizes(stride)
    if not isinstance(storage, torch.Tensor) or not plain:
        raise ValueError("it holds a tensor of other than plain numbers")
    return storage.as_strided(size, stride, offset)  # which stays within the storage, or raises


def _encoded(text: Any, encoding: Any) -> bytearray:
    """How a pickle of protocol 2 writes bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("it holds bytes that are not written as latin1")
    return bytearray(text, "latin-1")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "collections OrderedDict": lambda: {},  # noqa: PIE807 (dict would take what a file gives it)
    "numpy._core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray _reconstruct": lambda *_: _Array(),
    "numpy dtype": lambda code, *_: _Dtype(_text(code)),
    "_codecs encode": _encoded,
    _STEERING_VECTOR: PickledSteeringVector,
}


def _extend(container: Any, items: list[Any]) -> None:
    if type(container) is list:
        container.extend(items)
        return
    keys = items[::2]
    if type(container) is not dict or not all(type(key) in {int, str} for key in keys):
        raise ValueError("its pickle fills what is no list, and no dictionary by number or text")
    container.update(zip(keys, items[1::2], strict=True))


def _build(value: Any, state: Any) -> None:
    """Gives an object what it holds."""
    if isinstance(value, _Array):
        value.state = state
    elif isinstance(value, _Dtype):
        value.order = _text(state[1])
    elif isinstance(value, PickledSteeringVector):
        value.layer_activations = state["layer_activations"]
        value.layer_type = state.get("layer_type", value.layer_type)
    elif type(value) is not dict:  # the attributes of an OrderedDict are no vectors
        raise ValueError("its pickle changes what cannot be changed")


def _with_tensors(value: Any) -> Any:
    """The value with tensors for arrays, in itself or one container."""
    if isinstance(value, PickledSteeringVector):
        return PickledSteeringVector(_with_tensors(value.layer_activations), value.layer_type)
    if isinstance(value, dict):
        return {key: _array_tensor(item) for key, item in value.items()}
    return [_array_tensor(item) for item in value] if isinstance(value, list | tuple) else _array_tensor(value)


def _array_tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, _Array) else value


def _text(value: Any) -> str:
    """A text, which is safe to look up: the hash of a pair of a pair of … takes longer than the world."""
    if type(value) is not str:
        raise ValueError("it names a dtype by what is no text")
    return value


def _are_sizes(value: Any) -> bool:
    return type(value) is tuple and all(type(size) is int and 0 <= size < 2**62 for size in value)
