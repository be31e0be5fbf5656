"""What tells one judge from another, so that saved tuning is continued with the judge that it began with.

A judge is described by all that it computes with: its code, the values its code refers to, and the state of its
objects. Of installed packages only the name and the version count.
"""

from __future__ import annotations

import builtins
import copyreg
import functools
import hashlib
import sys
import sysconfig
import types
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.model.digest import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from rotalabs_steer.judging.scoring import Judge

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_BUILT_IN = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)
_NOT_CODE = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__firstlineno__", "_abc_impl"}
"""Of a class: what does not change what its objects compute."""
_MOST_PARTS = 100_000
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def judge_identity(judge: Judge | None, *, saved: bool = True) -> str:
    """A text that is the same for judges that score alike, and another for any other judge.

    A judge may have a string attribute `identity`; it is then told by that, and by nothing else.

    Args:
        saved: False where nothing will be continued by it. Where a judge cannot be described, it is then random.

    Raises:
        OptionError: `saved`, and some part of the judge cannot be described by its content, as a lock cannot.
    """
    if judge is None:
        return "the default judge"
    name = getattr(judge, "identity", None)
    if isinstance(name, str):
        return f"named {name!r}"
    try:
        return _Description().of(judge)
    except (_UnknownPartError, RecursionError) as error:
        if not saved:
            return f"unknown, {uuid.uuid4()}"
        raise OptionError(
            f"The judge {judge!r:.80} cannot be told from other judges by its content ({error}), so saved steps might "
            "be continued with another judge. Give it a string attribute that names it and changes whenever its scores "
            "would: judge.identity = 'helpfulness, version 1'. Or tune without an output folder."
        ) from error


class _UnknownPartError(Exception):
    """Something has no content that can be read."""


class _Description:
    """Digests of the parts of one object; a part that was met before is told by its number."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._met: list[Any] = []  # keeps them alive: an id is of one object only while that lives

    def of(self, part: Any) -> str:
        if type(part) in _PLAIN:
            return repr(part)
        if isinstance(part, _BUILT_IN) and isinstance(getattr(part, "__self__", None), types.ModuleType | None):
            return f"built in {getattr(part, '__module__', None)}.{part.__qualname__}"
        if id(part) in self._numbers:
            return f"met as {self._numbers[id(part)]}"
        if len(self._met) >= _MOST_PARTS:
            raise _UnknownPartError(f"it has more than {_MOST_PARTS:,} parts")
        self._numbers[id(part)] = len(self._met)
        self._met.append(part)
        kind = type(part)
        return hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}: {self._content(part)}".encode()).hexdigest()

    def _content(self, part: Any) -> str:
        if isinstance(part, torch.Tensor):
            return _tensor(part)
        if isinstance(part, types.ModuleType):
            return _module(part.__name__)
        if isinstance(part, type):
            return self._class(part)
        return _READERS.get(type(part), _Description._object)(self, part)

    def _list(self, parts: Iterable[Any]) -> str:
        return " ".join(map(self.of, parts))

    def _set(self, parts: Iterable[Any]) -> str:
        return " ".join(sorted(map(self.of, parts)))

    def _mapping(self, parts: Mapping[Any, Any]) -> str:
        return " ".join(f"{self.of(key)}={self.of(value)}" for key, value in parts.items())

    def _array(self, part: NDArray[Any]) -> str:
        if part.dtype.hasobject:
            return f"{part.shape} {self.of(part.tolist())}"
        return f"{part.dtype} {part.shape} {hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()}"

    def _cell(self, part: types.CellType) -> str:
        try:
            return self.of(part.cell_contents)
        except ValueError:
            return "empty"

    def _method(self, part: types.MethodType) -> str:
        return f"{self.of(part.__func__)} of {self.of(part.__self__)}"

    def _wrapper(self, part: staticmethod[..., Any] | classmethod[Any, ..., Any]) -> str:
        return self.of(part.__func__)

    def _property(self, part: property) -> str:
        return self.of((part.fget, part.fset))

    def _cached_property(self, part: functools.cached_property[Any]) -> str:
        return self.of(part.func)

    def _slot(self, part: types.MemberDescriptorType) -> str:
        return part.__qualname__

    def _function(self, function: types.FunctionType) -> str:
        """Code, defaults, what it closes over, and the values of the names that its code may look up."""
        if _is_installed(function.__module__):
            known = f"{_module(function.__module__)} {function.__qualname__}"
            return f"{known} {self.of((function.__closure__, function.__defaults__, function.__kwdefaults__))}"
        found = {
            name: function.__globals__[name]
            for name in sorted(_names(function.__code__))
            if name in function.__globals__ and not hasattr(builtins, name)
        }
        own = (function.__defaults__, function.__kwdefaults__, function.__closure__, vars(function), found)
        return f"{self._code(function.__code__)} {self.of(own)}"

    def _code(self, code: types.CodeType) -> str:
        return f"{code.co_code!r} {self.of(code.co_consts)} {code.co_names} {code.co_varnames} {code.co_freevars}"

    def _class(self, found: type) -> str:
        if _is_installed(found.__module__):
            return f"{_module(found.__module__)} {found.__qualname__}"
        members = {name: value for name, value in vars(found).items() if name not in _NOT_CODE}
        return f"{found.__qualname__} {self.of(found.__bases__)} {self.of(members)}"

    def _object(self, part: Any) -> str:
        """What `pickle` and `copy` would make it from again."""
        try:
            reduce = copyreg.dispatch_table.get(type(part))
            made_from = part.__reduce_ex__(4) if reduce is None else reduce(part)
        except Exception as error:  # whatever its author raises where there is nothing to make it from
            raise _UnknownPartError(f"a {type(part).__qualname__} in it has no content to read") from error
        if isinstance(made_from, str):  # something that a module has under this name
            wrapped = getattr(part, "__wrapped__", None)
            return self.of((made_from, wrapped)) if wrapped else _module(part.__module__) + made_from
        listed = [list(some) if number in (3, 4) and some else some for number, some in enumerate(made_from)]
        return self.of(listed)


_READERS: dict[type, Callable[[_Description, Any], str]] = {
    list: _Description._list,
    tuple: _Description._list,
    set: _Description._set,
    frozenset: _Description._set,
    dict: _Description._mapping,
    types.MappingProxyType: _Description._mapping,
    np.ndarray: _Description._array,
    types.CodeType: _Description._code,
    types.CellType: _Description._cell,
    types.FunctionType: _Description._function,
    types.MethodType: _Description._method,
    staticmethod: _Description._wrapper,
    classmethod: _Description._wrapper,
    property: _Description._property,
    functools.cached_property: _Description._cached_property,
    types.MemberDescriptorType: _Description._slot,
    types.GetSetDescriptorType: _Description._slot,
}


def _tensor(tensor: torch.Tensor) -> str:
    if tensor.device.type == "meta":
        raise _UnknownPartError("a tensor in it is on the meta device")
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(tensor_bytes(tensor).data).hexdigest()}"


def _names(code: types.CodeType) -> set[str]:
    """The names that a function's code and the code inside it may look up."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _module(name: str) -> str:
    """A module of an installed package by its version; another one by the content of its file."""
    if _is_installed(name):
        version = getattr(sys.modules.get(name.partition(".")[0]), "__version__", sys.version)
        return f"module {name} {version}"
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not Path(file).is_file():
        raise _UnknownPartError(f"the module {name} has no file")
    return f"module {name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _is_installed(name: str | None) -> bool:
    """Whether a module belongs to Python, to an installed package or to this one."""
    package = (name or "").partition(".")[0]
    if package in sys.builtin_module_names or package == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and any(folder in Path(file).resolve().parents for folder in _INSTALLED)
