"""The contrast pairs that a verb is told to work with: a built-in behaviour or a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rotalabs_steer.datasets import ContrastPairDataset


def read_pairs_of(name: str, split: str | None = None, columns: Mapping[str, str] | None = None) -> ContrastPairDataset:
    """The pairs of a built-in behaviour or a file.

    Args:
        split: "train", "validation" or "test". A file that names no splits gives all its pairs.
        columns: the file's column for each field, as `parse_columns` returns them.

    Raises:
        DatasetError: there is neither such a behaviour nor such a file, the file cannot be read, or it names other
            splits only.
        OptionError: columns are given for a built-in behaviour.
    """
    from rotalabs_steer.datasets import ContrastPairDataset, behavior_names, load_behavior, load_pairs
    from rotalabs_steer.datasets.splits import split_of

    if name in behavior_names():
        if columns:
            raise OptionError(f"--column is for files; {name} is a built-in behaviour, which has no columns.")
        return load_behavior(name, split)
    pairs = load_pairs(pairs_file(name), columns=columns)
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


def pairs_file(name: str) -> Path:
    """The file of that name.

    Raises:
        DatasetError: there is no such file.
    """
    from rotalabs_steer.datasets import behavior_names

    path = Path(name).expanduser()
    if path.is_dir():
        raise DatasetError(f"{name} is a folder; give one file of pairs, or a built-in behaviour.")
    if not path.exists():
        raise DatasetError(
            f"There is no file {name}, and no built-in behaviour of that name. Built in are: "
            f"{', '.join(behavior_names())}."
        )
    return path


def parse_columns(options: Sequence[str] | None) -> dict[str, str]:
    """The column of each field that `--column` names.

    Raises:
        OptionError: an option is not of the form FIELD=COLUMN, or a field is named twice.
    """
    columns: dict[str, str] = {}
    for option in options or ():
        field, equals, column = option.partition("=")
        if not (field and equals and column):
            raise OptionError(f"--column {option!r} is not of the form FIELD=COLUMN, as in positive=chosen.")
        if field in columns:
            raise OptionError(f"--column names the column of {field!r} twice.")
        columns[field] = column
    return columns
