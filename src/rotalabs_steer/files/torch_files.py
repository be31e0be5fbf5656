"""Files of torch.save: a zip archive that holds one pickle and, as separate members, the numbers of the tensors.

A pickle is a program: build this, call that. Nothing that it names is ever called here. `pickletools` lists the
instructions, and this module turns them into a description in which a call is only a record of a name and its
arguments. Tensors are then made from the descriptions that tensors and numpy arrays have; any other is refused.
`torch.load(weights_only=True)` is not enough: it calls `bytearray` and codecs with any argument, and it hashes and
prints whatever is nested.

Nothing is unpacked: the tensors share the memory of the file's content.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import torch

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.reading import check_finite, is_part, numbers_in

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float

_MAX_DIRECTORY_BYTES = 2**19
"""The maximum size of an archive's central directory, its list of members. Parsed, it takes ten times as much memory.

That of 4,096 vectors has 400 kB.
"""

_LOCAL_HEADER_BYTES = 30
_MAX_PICKLE_BYTES = 4 * 2**20
_MAX_INSTRUCTIONS = 30_000
"""A tensor takes 40, so a file can have vectors for 700 layers. An instruction of one byte can make an object of 64."""

_MAX_DIMENSIONS = 8
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
_NAMES = {
    *_STORAGES,
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
    "numpy._core.multiarray _reconstruct",
    "numpy.core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
    "steering_vectors.steering_vector SteeringVector",
}


def vector_bytes(vector: Float[torch.Tensor, " hidden"]) -> bytes:
    """The content of a `.pt` file with this vector."""
    buffer = io.BytesIO()
    torch.save(vector.detach().to("cpu").clone(memory_format=torch.contiguous_format), buffer)
    return buffer.getvalue()


def parse_vector(content: bytearray, path: Path) -> Float[torch.Tensor, " hidden"]:
    """The vector in the content of a `.pt` file, whose memory it shares.

    Raises:
        FileFormatError: the file holds anything but one contiguous vector of finite floating-point numbers.
    """
    vector = parse_pickle(open_archive(content, path), path)
    if not isinstance(vector, torch.Tensor):
        raise FileFormatError(f"{path} holds a {type(vector).__name__}, expected one tensor.")
    if vector.dim() != 1 or vector.numel() == 0:
        raise FileFormatError(f"{path} holds a tensor of shape {list(vector.shape)}, expected [hidden].")
    if not vector.dtype.is_floating_point:
        raise FileFormatError(f"{path} holds {vector.dtype}, expected floating-point numbers.")
    if not vector.is_contiguous():
        raise FileFormatError(f"{path} holds a tensor with stride {vector.stride()}, expected a contiguous one.")
    check_finite(vector, str(path))
    if is_part(vector):
        raise FileFormatError(f"{path} carries more data than its tensor shows.")
    return vector


def open_archive(content: bytearray, path: Path) -> dict[str, memoryview]:
    """The members of an uncompressed zip archive, of torch.save or numpy.savez, by name. They share its memory.

    Raises:
        FileFormatError: it is not a zip archive, is damaged or compressed, or has more members than vectors need.
    """
    try:
        with zipfile.ZipFile(_ContentReader(content, _MAX_DIRECTORY_BYTES)) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise FileFormatError(f"{path} is a compressed archive. Write it with torch.save or numpy.savez.")
        found = {member.filename: _data(member, content) for member in members}
    except FileFormatError:
        raise
    except Exception as error:  # zipfile raises errors of many types for damaged archives
        raise FileFormatError(f"{path} is not a file of torch.save or numpy.savez: {str(error)[:200]}") from error
    if len(found) != len(members):
        raise FileFormatError(f"{path} holds two files of one name.")
    return found


def _data(member: zipfile.ZipInfo, content: bytearray) -> memoryview:
    # The local header repeats the name and has extra fields of its own, whose lengths the central directory lacks.
    lengths = struct.unpack_from("<HH", content, member.header_offset + _LOCAL_HEADER_BYTES - 4)
    start = member.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)
    if not 0 < start <= start + member.file_size <= len(content):
        raise ValueError(f"{member.filename!r:.80} lies outside of it")
    return memoryview(content)[start : start + member.file_size]


class _ContentReader(io.RawIOBase):
    """Content in memory as a file that can be read. `io.BytesIO` would copy it.

    No read takes more than `limit` bytes at once, because a damaged archive can claim a central directory of any size.
    """

    def __init__(self, content: bytearray | memoryview, limit: int) -> None:
        self._content = memoryview(content)
        self._limit = limit
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1, /) -> bytes:
        rest = self._content[self._position :]
        found = rest if count < 0 else rest[:count]
        if max(count, len(found)) > self._limit:
            raise ValueError(f"it asks for {max(count, len(found)):,} bytes at once, more than {self._limit:,}")
        self._position += len(found)
        return bytes(found)


@dataclass(eq=False)
class PickledSteeringVector:
    """What a pickled `SteeringVector` of steering-vectors holds."""

    layer_activations: Any
    layer_type: Any


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, as "module name"."""

    text: str


@dataclass(eq=False, repr=False, slots=True)
class _Made:
    """An object that a pickle builds: what makes it, from which arguments, and what is put into it afterwards.

    It is never compared, hashed or printed, because that could take forever for an object nested in itself.
    """

    maker: str
    arguments: tuple[Any, ...] = ()
    items: Any = ()
    state: Any = None


def parse_pickle(members: Mapping[str, memoryview], path: Path) -> Any:
    """What torch.save wrote into an archive: a tensor, a list or dict of tensors, or a `PickledSteeringVector`.

    Arrays of numpy become tensors. Tensors share the memory of the archive. Strings and numbers in a container are
    returned as they are: check what is in it.

    Raises:
        FileFormatError: it is damaged, or holds anything else.
    """
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
        return _value(_description(program), storages)
    except Exception as error:  # the instructions of a damaged pickle fail in many ways
        raise FileFormatError(f"{path} is not a plain PyTorch tensor file: {str(error)[:200]}") from error


def _description(program: memoryview) -> Any:  # noqa: PLR0912 (a case for each kind of instruction)
    """What the instructions of a pickle describe, as numbers, strings, tuples, `_Name` and `_Made`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    reader = cast("BinaryIO", _ContentReader(program, _MAX_PICKLE_BYTES))
    for count, (code, argument, _) in enumerate(pickletools.genops(reader)):
        if count >= _MAX_INSTRUCTIONS:
            raise ValueError(f"its pickle has more than {_MAX_INSTRUCTIONS:,} instructions")
        # `stack_before` documents what an instruction takes from the stack: so many values, or some values and, as
        # its last two entries, the last mark and everything above that.
        takes = code.stack_before
        start = marks.pop() + 2 - len(takes) if pickletools.stackslice in takes else len(stack) - len(takes)
        if start < 0:
            raise ValueError("its pickle takes more values than it has")
        taken = stack[start:]
        del stack[start:]
        match code.name, taken:
            case "STOP", [value]:
                return value
            case "PROTO", _:
                pass
            case "MARK", _:
                marks.append(len(stack))
            case "BINPUT" | "LONG_BINPUT", _:
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET", _:
                stack.append(memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE", _:
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE", _:
                stack.append(argument)
            case "EMPTY_TUPLE" | "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3", _:
                stack.append(tuple(taken))
            case "EMPTY_LIST" | "EMPTY_DICT", _:
                stack.append(_Made(code.name))
            case "GLOBAL", _ if argument in _NAMES:
                stack.append(_Name(argument))
            case "REDUCE" | "NEWOBJ", [_Name(name), tuple(arguments)]:
                stack.append(_Made(name, arguments))
            case "BINPERSID", [tuple(arguments)]:
                stack.append(_Made("storage", arguments))
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS", [_Made() as made, *items]:
                made.items = made.items or []  # a list for each from the start would double what hostile files take
                made.items += items
                stack.append(made)
            case "BUILD", [_Made() as made, state]:
                made.state = state
                stack.append(made)
            case _:
                found = argument if code.name == "GLOBAL" else code.name
                raise ValueError(f"it holds more than plain tensors, and reading that could run code ({found})")
    raise ValueError("its pickle does not end")


def _value(described: Any, storages: Mapping[str, memoryview]) -> Any:
    """One tensor or one container of tensors."""
    # A description may contain itself, so nothing that is nested deeper is followed.
    match described:
        case _Made("steering_vectors.steering_vector SteeringVector", (), state=state):
            fields = _by_key(state)
            return PickledSteeringVector(
                {layer: _item(vector, storages) for layer, vector in _by_key(fields["layer_activations"]).items()},
                fields.get("layer_type", "decoder_block"),
            )
        case _Made("EMPTY_DICT" | "collections OrderedDict", ()):
            return {key: _item(value, storages) for key, value in _by_key(described).items()}
        case _Made("EMPTY_LIST", (), items) | tuple(items):
            return [_item(item, storages) for item in items]
        case _:
            return _item(described, storages)


def _by_key(described: Any) -> dict[int | str, Any]:
    match described:
        case _Made("EMPTY_DICT" | "collections OrderedDict", (), items):
            if all(type(key) in {int, str} for key in items[::2]):
                return dict(zip(items[::2], items[1::2], strict=True))
    raise ValueError("it holds a dictionary with keys other than numbers and text")


def _item(described: Any, storages: Mapping[str, memoryview]) -> Any:
    """A tensor; a string or number as it is."""
    match described:
        case _Made("torch._utils _rebuild_tensor_v2", (_Made("storage", storage), offset, size, stride, *_)):
            if not _are_sizes((offset,)) or not _are_sizes(size) or not _are_sizes(stride):
                raise ValueError(
                    "it holds a tensor whose offset, sizes or strides are not up to 8 numbers from 0 to 2^62"
                )
            return _storage(storage, storages).as_strided(size, stride, offset)  # which raises beyond the storage
        case _Made("torch._utils _rebuild_parameter", (tensor, *_)):
            return _item(tensor, storages)
        case _Made("numpy._core.multiarray _reconstruct" | "numpy.core.multiarray _reconstruct"):
            return _array(described.state)
        case _Made() | _Name() | tuple():
            raise ValueError("it holds more than tensors, arrays, and one list or dictionary of them")
        case _:
            return described


def _storage(described: Any, storages: Mapping[str, memoryview]) -> torch.Tensor:
    """The numbers in a member of the archive. The device that they were saved from does not matter."""
    match described:
        case ("storage", _Name(kind), str(key), _, int(count)) if kind in _STORAGES and key in storages:
            if count * _STORAGES[kind].itemsize != len(storages[key]):
                raise ValueError(f"it claims {count} numbers of {_STORAGES[kind]}, and has {len(storages[key])} bytes")
            return numbers_in(storages[key], _STORAGES[kind])
    raise ValueError("it refers to data that it does not have")


def _array(state: Any) -> torch.Tensor:
    """The array that numpy describes by version, shape, dtype, column-major order, and its bytes as a string."""
    match state:
        case (
            1,
            tuple(shape),
            _Made("numpy dtype", (str(code), *_), state=(_, str(order), *_)),
            False,
            _Made("_codecs encode", (str(text), "latin1")),
        ) if (order, code) in _ARRAY_DTYPES and _are_sizes(shape):
            dtype, data = _ARRAY_DTYPES[order, code], bytearray(text, "latin-1")
            if math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError(f"an array claims shape {shape!r:.80}, and has {len(data)} bytes")
            return numbers_in(data, dtype).reshape(shape)
    raise ValueError("it holds an array of other than plain numbers")


def _are_sizes(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= _MAX_DIMENSIONS
        and all(type(size) is int and 0 <= size < 2**62 for size in value)
    )
