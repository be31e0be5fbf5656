"""Replacing a method of one module, and undoing it, whatever others do to the module meanwhile."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class PatchedMethod:
    """A wrapper that replaces a method in a module's own dictionary.

    It holds the module weakly, so that a model that is dropped while it is patched can be freed. It can be put in place
    again after it was removed, because compiled code knows it by its identity. A copy of the module is another model,
    which nobody has attached to, so it gets its own method back.

    Args:
        around: called with the original method, and with all arguments by name.
    """

    def __init__(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        self._module, self._name, self._around = weakref.ref(module), name, around
        self._function = getattr(type(module), name)
        self._replaced: Any = None
        self._names = _positional_names(module, name)
        self._in_place = False
        self.__signature__ = inspect.signature(getattr(module, name))

    def put(self) -> None:
        """Replaces the method."""
        module = self._module()
        assert module is not None
        self._replaced, self._in_place = module.__dict__.get(self._name), True
        module.__dict__[self._name] = self

    def remove(self) -> None:
        """Gives the module its method back, unless somebody else has replaced it meanwhile."""
        module, self._in_place = self._module(), False
        if module is None or module.__dict__.get(self._name) is not self:
            return
        if self._replaced is None:
            del module.__dict__[self._name]
        else:
            module.__dict__[self._name], self._replaced = self._replaced, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `around`, or the original once this has been removed: somebody may still hold a reference."""
        original = self._function.__get__(self._module()) if self._replaced is None else self._replaced
        by_position = dict(zip(self._names, args, strict=False))
        # Arguments that do not fit the signature reach the original, which raises the usual error.
        if not self._in_place or len(by_position) < len(args) or by_position.keys() & kwargs.keys():
            return original(*args, **kwargs)
        return self._around(original, **by_position, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._module()))
        return self._function.__get__(self._module() if copied is None else copied)


def _positional_names(module: nn.Module, name: str) -> list[str]:
    """The names of the parameters that may be passed by position.

    A method that passes `*args` on to its base class has the parameters of the base class.
    """
    inherited = [vars(base)[name] for base in type(module).__mro__ if name in vars(base)]
    for method in (getattr(module, name), *inherited):
        parameters = list(inspect.signature(method).parameters.values())
        if not any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters):
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            return [one.name for one in parameters if one.kind in kinds and one.name != "self"]
    return []
