"""What tells one judge from another, so that saved tuning is continued with the judge that it began with.

The identity of a judge is a digest of its pickle. Pickle itself writes only the names of functions and classes; here
they are written with their code and the values that their code refers to. Installed packages count by name and version.
"""

from __future__ import annotations

import builtins
import copyreg
import functools
import hashlib
import io
import pickle
import sys
import sysconfig
import types
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rotalabs_steer.errors import OptionError
from rotalabs_steer.model.digest import tensor_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from rotalabs_steer.judging.scoring import Judge

_NOT_CODE = {
    "__annotations__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__module__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}
"""Members of a class that do not change what its objects compute."""
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def judge_identity(judge: Judge | None, *, saved: bool = True) -> str:
    """A string that is the same for judges that compute the same, and different for all others.

    A judge that has a string attribute `identity` is identified by that string alone.

    Args:
        saved: False if nothing will be continued by this identity. A judge that has no content to read then gets a
            random one.

    Raises:
        OptionError: `saved`, and a part of the judge has no content that can be read, such as a lock.
    """
    if judge is None:
        return "the default judge"
    name = getattr(judge, "identity", None)
    if isinstance(name, str):
        return f"named {name!r}"
    try:
        return _digest(judge)
    except Exception as error:  # whatever the author of some part raises if it cannot be pickled
        if not saved:
            return f"unknown, {uuid.uuid4()}"
        raise OptionError(
            f"The judge {judge!r:.80} cannot be told from other judges by its content ({error}), so saved steps might "
            "be continued with another judge. Give it a string attribute that names it and changes whenever its scores "
            "would: judge.identity = 'helpfulness, version 1'. Or tune without an output folder."
        ) from error


def _digest(part: Any) -> str:
    written = io.BytesIO()
    _ContentPickler(written, protocol=4).dump(part)
    return hashlib.sha256(written.getbuffer()).hexdigest()


class _ContentPickler(pickle.Pickler):
    """Pickles functions and classes by what they compute. Nothing that it writes can be loaded."""

    def persistent_id(self, part: Any) -> str | None:
        """A short description of a part that needs no further look; None lets pickle look into it."""
        if type(part) in (str, bytes):
            # Pickle writes a second occurrence of one object as a reference, but an equal copy in full. Whether equal
            # strings are one object differs between processes.
            content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            return f"{type(part).__name__} {hashlib.sha256(content).hexdigest()}"
        if type(part) in (set, frozenset):  # the order of a set differs between processes
            return f"{type(part).__name__} {sorted(map(_digest, part))}"
        if isinstance(part, torch.Tensor):
            if part.device.type == "meta":
                raise pickle.PicklingError("a tensor in it is on the meta device")
            return f"{part.dtype} {tuple(part.shape)} {hashlib.sha256(tensor_bytes(part).data).hexdigest()}"
        if isinstance(part, types.ModuleType):
            return _module(part.__name__)
        if isinstance(part, type) and _is_installed(part.__module__):
            return f"{_module(part.__module__)} {part.__qualname__}"
        return None

    def reducer_override(self, part: Any) -> Any:
        """What pickle writes for a part: a callable, its arguments and, last, what may refer back to the part."""
        if isinstance(part, types.FunctionType):
            return types.FunctionType, (), _function(part)
        if isinstance(part, type):
            members = {name: value for name, value in vars(part).items() if name not in _NOT_CODE}
            return type(part), (part.__qualname__, part.__bases__), members
        reduce = _REDUCERS.get(type(part)) or copyreg.dispatch_table.get(type(part))
        reduced = reduce(part) if reduce else part.__reduce_ex__(4)
        if not isinstance(reduced, str):
            return reduced
        # The part asks to be pickled by its name alone, as built-in functions and those in `functools.cache` do.
        wrapped, module = getattr(part, "__wrapped__", None), getattr(part, "__module__", None)
        return str, (reduced, module if module is None or wrapped else _module(module)), wrapped


def _function(function: types.FunctionType) -> Any:
    """The code of a function, or the name of an installed one, and the values that it may look up."""
    given = (function.__defaults__, function.__kwdefaults__, function.__closure__)
    if _is_installed(function.__module__):
        return _module(function.__module__), function.__qualname__, given
    names = _names(function.__code__) & function.__globals__.keys()
    # What every module has, such as `__name__` and `__spec__`, does not count; a function that is called `sum` does.
    own = sorted(name for name in names if not (name.startswith("__") and hasattr(builtins, name)))
    found = {name: function.__globals__[name] for name in own}
    return function.__code__, given, vars(function), found


def _names(code: types.CodeType) -> set[str]:
    """The names that a function's code and the code inside it may look up."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {*code.co_names}.union(*map(_names, inner))


def _code(code: types.CodeType) -> tuple[Any, ...]:
    names = repr((code.co_names, code.co_varnames, code.co_freevars))
    return types.CodeType, (code.co_code, code.co_consts, names)


def _cell(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return types.CellType, (), (cell.cell_contents,)
    except ValueError:  # an empty cell
        return types.CellType, ()


_REDUCERS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    types.CodeType: _code,
    types.CellType: _cell,
    types.MappingProxyType: lambda mapping: (types.MappingProxyType, (dict(mapping),)),
    staticmethod: lambda method: (staticmethod, (method.__func__,)),
    classmethod: lambda method: (classmethod, (method.__func__,)),
    property: lambda found: (property, (found.fget, found.fset)),
    functools.cached_property: lambda found: (functools.cached_property, (found.func,)),
}
"""How to write what pickle cannot."""


def _module(name: str) -> str:
    """A module of an installed package by its version; any other by the content of its file."""
    if _is_installed(name):
        version = getattr(sys.modules.get(name.partition(".")[0]), "__version__", sys.version)
        return f"module {name} {version}"
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not Path(file).is_file():
        raise pickle.PicklingError(f"the module {name} has no file")
    return f"module {name} {hashlib.sha256(Path(file).read_bytes()).hexdigest()}"


def _is_installed(name: str | None) -> bool:
    """Whether a module belongs to Python, to an installed package or to this one."""
    package = (name or "").partition(".")[0]
    if package in sys.builtin_module_names or package == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and any(folder in Path(file).resolve().parents for folder in _INSTALLED)
