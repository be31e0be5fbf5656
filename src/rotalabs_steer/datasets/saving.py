"""Contrast pairs as JSON Lines and CSV, in the columns that `load_pairs` reads back."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.datasets.pairs import TEXT_FIELDS, json_text
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.files.atomic import write_atomically

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from rotalabs_steer.datasets.pairs import ContrastPair


def save_jsonl(pairs: Iterable[ContrastPair], path: str | os.PathLike[str]) -> None:
    """Writes one pair a line, atomically; metadata become columns of their own, as `load_pairs` reads them."""
    lines = (json_text(columns_of(pair)) for pair in pairs)
    _write(path, "".join(f"{line}\n" for line in lines))


def save_csv(pairs: Iterable[ContrastPair], path: str | os.PathLike[str]) -> None:
    """Writes a CSV file with a header, atomically. Metadata that are not text are written as JSON.

    Raises:
        DatasetError: a pair has an empty `negative_system`, which CSV cannot tell from a missing one, or its prompt is
            a conversation.
    """
    rows = [columns_of(pair) for pair in pairs]
    for number, row in enumerate(rows, 1):
        if row.get("negative_system") == "":
            raise DatasetError(f"Pair {number} has an empty negative_system, which CSV cannot hold. Use JSON Lines.")
        if any(isinstance(row.get(name), list) for name in ("prompt", "negative_prompt")):
            raise DatasetError(f"The prompt of pair {number} is a conversation, which CSV cannot hold. Use JSON Lines.")
    header = list(dict.fromkeys(column for row in rows for column in row))
    content = io.StringIO(newline="")
    writer = csv.DictWriter(content, header)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: value if isinstance(value, str) else json_text(value) for key, value in row.items()})
    _write(path, content.getvalue())


def columns_of(pair: ContrastPair) -> dict[str, Any]:
    """The row that `load_pairs` turns into this pair. Metadata become columns, except for keys that name a field."""
    kept_empty = {"positive", "negative", "negative_system"}
    ordered = ("prompt", "system", *(name for name in TEXT_FIELDS if name not in {"prompt", "system"}))
    values = {name: getattr(pair, name) for name in ordered}
    row = {name: value for name, value in values.items() if value or (value == "" and name in kept_empty)}
    reserved = {name: value for name, value in pair.metadata.items() if name in {*TEXT_FIELDS, "metadata"}}
    row |= {name: value for name, value in pair.metadata.items() if name not in reserved}
    return row | ({"metadata": reserved} if reserved else {})


def _write(path: str | os.PathLike[str], content: str) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.encode())
