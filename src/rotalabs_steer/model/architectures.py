"""What the names and layouts of transformers' decoder layers are: the table in `data/architectures.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class ArchitectureTable:
    """Where to look in models whose classes share no interface.

    Attributes:
        layer_lists: names of the list of decoder layers.
        wrappers: names of modules that lead to it.
        layer_paths: model types whose list of layers is nowhere that these names lead.
        layouts: model types whose layers return something other than `[batch, seq, hidden]`; see `ResidualLayout`.
        parts: names of what a layer is made of; see `find_parts`.
    """

    layer_lists: tuple[str, ...]
    wrappers: tuple[str, ...]
    layer_paths: Mapping[str, str]
    layouts: Mapping[str, str]
    parts: Mapping[str, tuple[str, ...]]


@cache
def architecture_table() -> ArchitectureTable:
    """The table of this package."""
    data: dict[str, Any] = json.loads(
        files("rotalabs_steer.model").joinpath("data/architectures.json").read_text("utf-8")
    )
    return ArchitectureTable(
        layer_lists=tuple(data["layer_lists"]),
        wrappers=tuple(data["wrappers"]),
        layer_paths=data["layer_paths"],
        layouts=data["layouts"],
        parts={kind: tuple(names) for kind, names in data["parts"].items()},
    )
