"""Trade-off results as JSON files. Those of rotalabs-steer 1.2 can be read."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.evaluation.text_measures import TextMeasures
from rotalabs_steer.evaluation.tradeoffs import TradeoffResult
from rotalabs_steer.files.atomic import write_atomically
from rotalabs_steer.intervals import Estimate, PairedComparison

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

SCHEMA_VERSION = 1

_KNOWN = {field.name for field in dataclasses.fields(TradeoffResult)} - {"extra"}
_REQUIRED = {field.name for field in dataclasses.fields(TradeoffResult) if not field.kw_only}
_NUMBERS = {*_REQUIRED, "kl_cost", "tokens_per_second", "seed"}
_NEVER_NONE = {"strength", "num_samples"}


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
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The analysis cannot be written as JSON: {error}. Use plain numbers, texts, lists and dictionaries."
        ) from error
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def load_analysis_results(path: str | os.PathLike[str]) -> list[TradeoffResult]:
    """Reads what `save_analysis_results`, or rotalabs-steer 1.2, wrote. Keys it does not know are kept in `extra`.

    Raises:
        FileFormatError: the file is not such an analysis, or was written by a newer release; the message says where.
    """
    rows = _document(Path(path))["results"]
    return [_parse(row, f"{path}, result {number}") for number, row in enumerate(rows, 1)]


def load_analysis_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata saved with results.

    Raises:
        FileFormatError: as for `load_analysis_results`.
    """
    return dict(_document(Path(path)).get("metadata") or {})


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FileFormatError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), list):
        raise FileFormatError(f"{path} is not an analysis: it needs an object with a list of 'results'.")
    version = document.get("schema_version", SCHEMA_VERSION)  # 1.2 wrote none
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise FileFormatError(
            f"{path} has schema_version {version!r}; this release reads up to {SCHEMA_VERSION}. "
            "Update rotalabs-steer to read it."
        )
    return document


def _parse(row: Any, place: str) -> TradeoffResult:
    if not isinstance(row, dict):
        raise FileFormatError(f"{place}: expected an object, found {type(row).__name__}.")
    missing = sorted(_REQUIRED - row.keys())
    if missing:
        raise FileFormatError(f"{place}: no {', '.join(missing)}.")
    for name in _NUMBERS & row.keys():
        if not _is_number(row[name]) and (row[name] is not None or name in _NEVER_NONE):
            raise FileFormatError(f"{place}: {name} is {row[name]!r}, not a finite number.")
    known = {name: value for name, value in row.items() if name in _KNOWN}
    try:
        for name, build in _RECORDS.items():
            if known.get(name) is not None:
                known[name] = build(known[name])
    except (TypeError, KeyError) as error:
        raise FileFormatError(f"{place}: {name} is malformed: {error}.") from error
    return TradeoffResult(**known, extra={name: value for name, value in row.items() if name not in _KNOWN})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _estimate(record: dict[str, float]) -> Estimate:
    return Estimate(**record)


def _comparison(record: dict[str, Any]) -> PairedComparison:
    return PairedComparison(**{**record, "difference": Estimate(**record["difference"])})


def _text(record: dict[str, Any]) -> TextMeasures:
    return TextMeasures(**record)


_RECORDS: dict[str, Callable[[Any], Any]] = {
    "target_interval": _estimate,
    "false_positive_interval": _estimate,
    "coherence_interval": _estimate,
    "helpfulness_interval": _estimate,
    "target_change": _comparison,
    "false_positive_change": _comparison,
    "target_outcomes": tuple,
    "false_positive_outcomes": tuple,
    "text": _text,
}
