"""The rows of JSON Lines, CSV and JSON files, one at a time, each with its place and what is wrong with it.

A row that cannot be read does not end the reading, so all faults of a file can be shown together. JSON Lines and CSV
are never in memory as a whole.
"""

from __future__ import annotations

import codecs
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")
_DELIMITERS = ",;\t"
_SAVE_AS_UTF8 = "Save the file as UTF-8 (in Excel: 'CSV UTF-8')."


@dataclass(frozen=True)
class Row:
    """One row of a file: its values by column, or the reason why it has none.

    Attributes:
        number: 1 for the first row, not counting the header of a CSV file; in JSON Lines the number of the line.
        place: file and row, for a message.
        problem: the reason, as a sentence without its subject.
    """

    number: int
    place: str
    values: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class RowFile:
    """The rows of a file, and the behaviour and description that it gives for all of them."""

    rows: Iterator[Row]
    behavior: str = ""
    description: str = ""


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """The rows of a `.jsonl`, `.csv`, `.tsv` or `.json` file, one at a time.

    Raises:
        DatasetError: the file as a whole cannot be read; a fault of one row is in that row's `problem`.
    """
    return open_rows(path).rows


def open_rows(path: str | os.PathLike[str]) -> RowFile:
    """The rows of a file with its behaviour and description, which only JSON files have."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DatasetError(
            f"{path} is not a kind of file that can be read: use {', '.join(_SUFFIXES)}. Read other kinds with the "
            "library `datasets` and pass the result to load_pairs."
        )
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning:
        raise DatasetError(f"{path} is empty: it has no rows.")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DatasetError(f"{path} is encoded as UTF-16. {_SAVE_AS_UTF8}")
    if suffix == ".json":
        return _json_file(path)
    return RowFile(_csv_rows(path) if suffix in {".csv", ".tsv"} else _json_lines(path))


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = (line for block in file for line in block.rstrip(b"\r\n").split(b"\r"))  # old Macs end a line by CR
        for number, content in enumerate(lines, 1):
            line = content.removeprefix(codecs.BOM_UTF8) if number == 1 else content
            if line.strip():
                yield _json_line(line, number, f"{path}, row {number}")


def _json_line(line: bytes, number: int, place: str) -> Row:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{line[error.start]:02x} at character {error.start + 1}. {_SAVE_AS_UTF8}"
        return Row(number, place, problem=reason)
    except (ValueError, RecursionError) as error:
        return Row(number, place, problem=f"not valid JSON: {str(error)[:120]}.")
    return _checked(values, number, place)


def _checked(values: Any, number: int, place: str) -> Row:
    if isinstance(values, dict):
        return Row(number, place, values)
    return Row(number, place, problem=f"expected an object with 'positive' and 'negative', found {_kind(values)}.")


def _json_file(path: Path) -> RowFile:
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        document = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}, line {line}: not UTF-8: byte 0x{content[error.start]:02x}. {_SAVE_AS_UTF8}"
        ) from error
    except (ValueError, RecursionError) as error:
        if _begins_with_object(content):
            return RowFile(_json_lines(path))
        raise DatasetError(f"{path} is not valid JSON: {str(error)[:120]}.") from error
    rows = document.get("pairs") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DatasetError(
            f"{path} holds {_kind(document)} without a list of rows; expected a list of objects, or an object with "
            "'behavior' and 'pairs'."
        )
    about = document if isinstance(document, dict) else {}
    return RowFile(
        (_checked(values, number, f"{path}, row {number}") for number, values in enumerate(rows, 1)),
        _text(about, "behavior", path),
        _text(about, "description", path),
    )


def _text(about: dict[str, Any], name: str, path: Path) -> str:
    value = about.get(name, "")
    if not isinstance(value, str):
        raise DatasetError(f"{path}: {name!r} is {_kind(value)}, expected a string.")
    return value


def _begins_with_object(content: bytes) -> bool:
    """Whether the first line is a JSON object: `Dataset.to_json` writes JSON Lines under the name `.json`."""
    try:
        return isinstance(json.loads(content.partition(b"\n")[0]), dict)
    except (ValueError, RecursionError):
        return False


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows whose empty cells are None. Bytes that are not UTF-8 become surrogates, so that their row is known."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:  # every kind of line end
        header_line = next(lines).removeprefix("\ufeff")
        delimiter = max(_DELIMITERS, key=header_line.count)
        header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DatasetError(f"{path} has two columns with the name {twice[0]!r}. Rename one.")
        records = csv.reader(lines, delimiter=delimiter, strict=True)
        number = 0
        while True:
            # `line_num` counts the lines of earlier records; this one begins on the line after them and the header.
            number, line = number + 1, records.line_num + 2
            place = f"{path}, row {number} (line {line})"
            try:
                cells = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(number, place, problem=f"not valid CSV: {error}; is a quote missing?")
                continue
            if cells:
                yield _csv_row(header, cells, number, place)
            else:
                number -= 1  # a blank line is not a row


def _csv_row(header: list[str], cells: list[str], number: int, place: str) -> Row:
    stray = next((character for cell in cells for character in cell if "\udc80" <= character <= "\udcff"), None)
    if stray is not None:
        return Row(number, place, problem=f"not UTF-8: byte 0x{ord(stray) - 0xDC00:02x}. {_SAVE_AS_UTF8}")
    if len(cells) != len(header):
        reason = f"{len(cells)} values for {len(header)} columns; put quotes around a text with commas."
        return Row(number, place, problem=reason)
    return Row(number, place, {name: cell or None for name, cell in zip(header, cells, strict=True)})


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
