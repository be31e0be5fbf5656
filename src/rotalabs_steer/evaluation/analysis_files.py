"""Trade-off results as JSON files. Files of rotalabs-steer 1.2 can be read, too."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.evaluation.tradeoffs import TradeoffResult
from rotalabs_steer.files.records import from_json, read_record, write_record

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

SCHEMA_VERSION = 1

_FIELDS = {field.name for field in dataclasses.fields(TradeoffResult)} - {"extra"}


def save_analysis_results(
    results: Sequence[TradeoffResult], path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes results and metadata to one JSON file, atomically. Missing folders are made.

    Raises:
        OptionError: the metadata, or a number in the results, cannot be written as JSON.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "results": [result.to_dict() for result in results],
        "metadata": dict(metadata or {}),
    }
    try:
        write_record(path, document)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The analysis cannot be written as JSON: {error}. Use plain numbers, strings, lists and dictionaries."
        ) from error


def load_analysis_results(path: str | os.PathLike[str]) -> list[TradeoffResult]:
    """Reads results that `save_analysis_results` or rotalabs-steer 1.2 wrote. Unknown keys are kept in `extra`.

    Raises:
        FileFormatError: the file is not such an analysis, or a newer release wrote it. The message names the result.
    """
    rows = _document(Path(path))["results"]
    return [_parse(row, f"{path}, result {number}") for number, row in enumerate(rows, 1)]


def load_analysis_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that was saved with results. Raises as `load_analysis_results`."""
    metadata = _document(Path(path)).get("metadata") or {}
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path} is not an analysis: its metadata is {metadata!r:.80}, not an object.")
    return metadata


def _document(path: Path) -> dict[str, Any]:
    document = read_record(path, SCHEMA_VERSION)  # release 1.2 wrote no version, which is accepted
    if not isinstance(document.get("results"), list):
        raise FileFormatError(f"{path} is not an analysis: it needs an object with a list of 'results'.")
    return document


def _parse(row: Any, place: str) -> TradeoffResult:
    unknown = {key: value for key, value in row.items() if key not in _FIELDS} if isinstance(row, dict) else {}
    result: TradeoffResult = from_json(TradeoffResult, row, place, extra=unknown)
    return result
