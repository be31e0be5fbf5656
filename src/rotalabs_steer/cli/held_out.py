"""The pairs that a verb measures on."""

from __future__ import annotations

from pathlib import Path

from rotalabs_steer.datasets import ContrastPairDataset, behavior_names, load_behavior, load_pairs
from rotalabs_steer.errors import DatasetError


def held_out_pairs(name: str) -> ContrastPairDataset:
    """The test pairs of a built-in behaviour; of a file those of its split "test", or all where it names none.

    Raises:
        DatasetError: there is neither such a behaviour nor such a file, or the file cannot be read.
    """
    if name in behavior_names():
        return load_behavior(name, "test")
    if not Path(name).exists():
        raise DatasetError(
            f"There is no file {name}, and no built-in behaviour of that name. Built in are: "
            f"{', '.join(behavior_names())}."
        )
    pairs = load_pairs(name)
    test = [pair for pair in pairs if pair.metadata.get("split") == "test"]
    return ContrastPairDataset(pairs.behavior, test, pairs.description) if test else pairs
