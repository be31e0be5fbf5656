"""Dataclasses as JSON files and back, by the type hints of their fields.

The metadata of a field can give it another key in the file: `field(metadata={"key": "layer"})`. A key that the class
does not have is ignored, and a field whose key is missing gets its default, so files of earlier and later releases can
be read. The types in the hints must be importable at run time.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import itertools
import json
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.arguments import as_integer, as_real
from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.files.reading import parse_json_object, read_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

_MAX_BYTES = 64 * 2**20
_MAX_ITEMS = 2_000_000
"""Far more than the record of any tuning has: five strengths of 100,000 pairs are half a million numbers."""


def write_record(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes a record as JSON, atomically. Missing folders are created.

    Raises:
        TypeError, ValueError: the record holds something that JSON cannot express, such as NaN. No file has changed.
    """
    content = (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def read_record(path: Path, newest: int | None = None) -> dict[str, Any]:
    """Reads a JSON object that a stranger may have written.

    Args:
        newest: the newest `schema_version` that the caller understands; a record without one is older.

    Raises:
        FileFormatError: the file is too large, is not a JSON object of finite numbers, or is of a newer release.
    """
    record = parse_json_object(read_bytes(path, _MAX_BYTES), path, _MAX_ITEMS)
    version = record.get("schema_version", newest)
    if newest is not None and (not isinstance(version, int) or version > newest):
        raise FileFormatError(
            f"{path} has schema_version {version!r}; this release reads up to {newest}. "
            "Update rotalabs-steer to read it."
        )
    return record


def key_of(field: dataclasses.Field[Any]) -> str:
    """The key in the file for a field of a dataclass."""
    key: str = field.metadata.get("key", field.name)
    return key


def to_json(value: Any) -> Any:
    """A dataclass, or the value of a field, as JSON values. Numbers keep all their digits."""
    if dataclasses.is_dataclass(value):
        return {key_of(field): to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def from_json(kind: Any, value: Any, place: str, **given: Any) -> Any:
    """The inverse of `to_json` for a dataclass or another type. Every value is checked against its type.

    Args:
        place: what the value is, for an error message.
        given: fields of the dataclass that the file does not hold.

    Raises:
        FileFormatError: a field is missing, or its value is not of its type; the message says which.
    """
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, f"{place}: ", given)
    return _value(kind, value, "", place)


def _dataclass(kind: Any, record: Any, prefix: str, given: Mapping[str, Any]) -> Any:
    if not isinstance(record, dict):
        raise FileFormatError(f"{prefix}expected an object, found {type(record).__name__}.")
    fields = {key_of(field): field for field in dataclasses.fields(kind) if field.name not in given}
    required = {
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - record.keys()):
        raise FileFormatError(f"{prefix}no {', '.join(missing)}.")
    hints = typing.get_type_hints(kind)
    found = {
        field.name: _value(hints[field.name], record[key], prefix, key)
        for key, field in fields.items()
        if key in record
    }
    try:
        return kind(**found, **given)
    except OptionError as error:  # the class refuses values that do not belong together
        raise FileFormatError(f"{prefix}{error}") from error


def _value(kind: Any, value: Any, prefix: str, name: str) -> Any:
    """A value of any type that a field can have."""
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, f"{prefix}{name} is malformed: ", {})
    if kind is Any:
        return value
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return _either(typing.get_args(kind), value, prefix, name)
    if kind in _PLAIN:
        wanted, check = _PLAIN[kind]
        found = check(value)
    else:
        wanted, found = "what belongs there", _container(kind, value, prefix, name)
    if found is None:
        raise FileFormatError(f"{prefix}{name} is {value!r:.80}, not {wanted}.")
    return found


def _either(kinds: tuple[Any, ...], value: Any, prefix: str, name: str) -> Any:
    """A value of the first type of a union that fits it. If none fits, the error is that of the last one."""
    if value is None and types.NoneType in kinds:
        return None
    *first, last = (kind for kind in kinds if kind is not types.NoneType)
    for kind in first:
        with contextlib.suppress(FileFormatError):
            return _value(kind, value, prefix, name)
    return _value(last, value, prefix, name)


def _container(kind: Any, value: Any, prefix: str, name: str) -> Any:
    """A tuple, list or mapping with its items; None if the value does not have that form."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (tuple, list) and isinstance(value, list):
        repeated = origin is list or arguments[-1] is Ellipsis
        if repeated or len(arguments) == len(value):
            kinds = itertools.repeat(arguments[0]) if repeated else arguments
            found = zip(kinds, value, strict=False)
            return origin(_value(each, item, prefix, f"{name}[{n}]") for n, (each, item) in enumerate(found))
    elif origin in (dict, collections.abc.Mapping) and isinstance(value, dict):
        try:
            keys = [arguments[0](key) for key in value]
        except ValueError:  # a key that should be a number is not one
            return None
        items = zip(keys, value.values(), strict=True)
        return {key: _value(arguments[1], item, prefix, f"{name}[{key!r}]") for key, item in items}
    return None


def _tensor(value: Any) -> torch.Tensor | None:
    """A tensor of finite float32 numbers; None if the value cannot be one."""
    try:
        tensor = torch.tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    is_real = tensor.dtype is not torch.bool and not tensor.is_complex()
    tensor = tensor.float()
    return tensor if is_real and bool(tensor.isfinite().all()) else None


def _instance(kind: type) -> Callable[[Any], Any]:
    return lambda value: value if isinstance(value, kind) else None


_PLAIN: dict[Any, tuple[str, Callable[[Any], Any]]] = {
    float: ("a finite number", as_real),
    int: ("an integer", as_integer),
    str: ("a string", _instance(str)),
    bool: ("true or false", _instance(bool)),
    torch.Tensor: ("a list of finite numbers, or rows of them", _tensor),
}
