"""Names and layouts of transformers' decoder layers: the table in `data/architectures.json`."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class ArchitectureTable(NamedTuple):
    """Where to look in models whose classes share no interface.

    Attributes:
        layer_lists: names of the list of decoder layers.
        wrappers: names of modules that lead to it.
        layer_paths: the path of that list, for model types in which these names do not lead to it.
        layouts: the `ResidualLayout` of model types whose layers return something other than `[batch, seq, hidden]`.
        parts: names of the modules that a layer is made of; see `find_parts`.
    """

    layer_lists: list[str]
    wrappers: list[str]
    layer_paths: dict[str, str]
    layouts: dict[str, str]
    parts: dict[str, list[str]]


@cache
def architecture_table() -> ArchitectureTable:
    """The table of this package."""
    data = json.loads(files("rotalabs_steer.model").joinpath("data/architectures.json").read_text("utf-8"))
    return ArchitectureTable(**{name: data[name] for name in ArchitectureTable._fields})
