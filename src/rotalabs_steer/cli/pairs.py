"""The contrast pairs that a verb is told to work with: a built-in behaviour or a file."""

from __future__ import annotations

from pathlib import Path

from rotalabs_steer.datasets import ContrastPairDataset, behavior_names, load_behavior, load_pairs
from rotalabs_steer.datasets.splits import split_of
from rotalabs_steer.errors import DatasetError


def read_pairs_of(name: str, split: str | None = None) -> ContrastPairDataset:
    """The pairs of a built-in behaviour or a file.

    Args:
        split: only those of "train", "validation" or "test"; of a file that names no splits, all.

    Raises:
        DatasetError: there is neither such a behaviour nor such a file, the file cannot be read, or it names other
            splits only.
    """
    if name in behavior_names():
        return load_behavior(name, split)
    if not Path(name).exists():
        raise no_such_pairs(name)
    pairs = load_pairs(name)
    splits = [split_of(pair) for pair in pairs] if split else []
    if not any(splits):
        return pairs
    if split not in splits:
        raise DatasetError(
            f"{name} names splits ({', '.join(sorted({found for found in splits if found}))}), but no pair is in "
            f"{split!r}. Name the pairs to use {split!r}, or remove the column `split` to use them all."
        )
    chosen = [pair for pair, found in zip(pairs, splits, strict=True) if found == split]
    return ContrastPairDataset(pairs.behavior, chosen, pairs.description)


def no_such_pairs(name: str) -> DatasetError:
    """The error for a name that is neither a file nor a built-in behaviour."""
    return DatasetError(
        f"There is no file {name}, and no built-in behaviour of that name. Built in are: {', '.join(behavior_names())}."
    )
