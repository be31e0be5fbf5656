"""Public names that a package imports when they are first used, so that importing the package is fast."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a package (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: by module of the package, the names that are imported from it.
    """

    def get(name: str) -> Any:
        for module, names in homes.items():
            if name in names:
                return getattr(import_module(f"{package}.{module}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
