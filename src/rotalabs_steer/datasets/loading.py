"""Contrast pairs from files, Hugging Face datasets and lists."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rotalabs_steer.chat.conversations import prompt_key
from rotalabs_steer.datasets.builtin import behavior_names, load_behavior
from rotalabs_steer.datasets.pairs import TEXT_FIELDS, ContrastPair, ContrastPairDataset, as_dataset, check_rows
from rotalabs_steer.datasets.row_files import Row, RowFile, open_rows
from rotalabs_steer.errors import DatasetError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rotalabs_steer.chat.conversations import Prompt

_PROMPT_FIELDS = ("prompt", "negative_prompt")
_REQUIRED = ("positive", "negative")
_CAA_COLUMNS = {
    "prompt": "question",
    "positive": "answer_matching_behavior",
    "negative": "answer_not_matching_behavior",
}
_CAA_LETTER = re.compile(r"\(([A-Z])\)")
_SHOWN_REASONS = 5
_SHOWN_ROWS = 5

PairSource: TypeAlias = str | os.PathLike[str] | ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]]
"""The forms of pairs that extraction and tuning accept; see `pairs_from`."""


@dataclass(frozen=True)
class RowProblem:
    """A row that is not a pair, and why."""

    row: int
    place: str
    reason: str


@dataclass(frozen=True)
class PairReading:
    """The pairs of a source with their row numbers, and the rows that are not pairs."""

    name: str
    behavior: str
    description: str
    pairs: tuple[ContrastPair, ...]
    rows: tuple[int, ...]
    problems: tuple[RowProblem, ...]


def load_pairs(
    source: str | os.PathLike[str] | Iterable[Any],
    behavior: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep_duplicates: bool = False,
) -> ContrastPairDataset:
    """The contrast pairs of a file, a built-in behaviour, a Hugging Face dataset or a list.

    Args:
        source: a `.jsonl`, `.csv`, `.tsv` or `.json` file; the name of a built-in behaviour, such as "formality"; or
            rows: mappings, pairs, or (positive, negative) texts. JSON may be what `ContrastPairDataset.save` wrote, a
            list of objects, or the multiple-choice layout of CAA (Rimsky et al. 2024): objects with "question",
            "answer_matching_behavior" and "answer_not_matching_behavior", whose answers lose the blanks around them.
        behavior: name of the behaviour; by default the one that the file holds, else the file's name, else "custom".
        columns: the source's column for a field, as in `{"positive": "chosen", "negative": "rejected"}`. Fields are
            those of `ContrastPair`; every other column goes into the metadata. A prompt may be a list of messages.
        keep_duplicates: accept rows that occur twice.

    Raises:
        DatasetError: there are no rows, or some are not pairs; the message names all kinds of fault and their rows.
        OptionError: `columns` names an unknown field.
    """
    reading = read_pairs(source, behavior, columns, keep_duplicates)
    if reading.problems:
        raise DatasetError(_describe(reading))
    return ContrastPairDataset(reading.behavior, reading.pairs, reading.description)


def read_pairs(
    source: str | os.PathLike[str] | Iterable[Any],
    behavior: str | None = None,
    columns: Mapping[str, str] | None = None,
    keep_duplicates: bool = False,
) -> PairReading:
    """Reads what `load_pairs` reads, but returns faulty rows beside the pairs instead of raising an error.

    Raises:
        DatasetError: the source as a whole cannot be read, or has no rows.
    """
    if columns is not None and not isinstance(columns, Mapping):
        raise OptionError(f"columns is {columns!r:.80}; give the column of each field: {{'positive': 'chosen'}}.")
    columns = dict(columns or {})
    unknown = sorted(set(columns) - {*TEXT_FIELDS, "metadata"})
    if unknown:
        raise OptionError(f"Unknown field {unknown[0]!r} in columns. Use: {', '.join(TEXT_FIELDS)}.")
    if isinstance(source, str) and source in behavior_names():
        if columns:
            raise OptionError(f"columns are for files; {source} is a built-in behaviour, which has none to name.")
        source = load_behavior(source)
    name, file = _open(source)
    pairs, rows, problems = [], [], []
    first: dict[tuple[str | None, ...], int] = {}
    for row in file.rows:
        try:
            pair = _pair_of(row, columns)
            number = first.setdefault(_identity(pair), row.number)
            if number != row.number and not keep_duplicates:
                raise DatasetError(f"the same pair as row {number}.")
        except DatasetError as error:
            problems.append(RowProblem(row.number, row.place, str(error)))
        else:
            pairs.append(pair)
            rows.append(row.number)
    if not pairs and not problems:
        raise DatasetError(f"{name} has no rows: a dataset needs at least one pair.")
    return PairReading(
        name, behavior or file.behavior or "custom", file.description, tuple(pairs), tuple(rows), tuple(problems)
    )


def pairs_from(source: PairSource) -> ContrastPairDataset:
    """Pairs in any form that extraction and tuning accept: a dataset, a list, a file, or a built-in behaviour's name.

    Raises:
        DatasetError: there are no pairs, one is malformed, or there is neither such a file nor such a behaviour.
    """
    if not isinstance(source, str | os.PathLike):
        return as_dataset(source)
    path = Path(source).expanduser()
    if path.is_file():
        return load_pairs(path)
    name = os.fspath(source)
    if name not in behavior_names():
        raise DatasetError(
            f"There is no file {name!r:.200}, and no built-in behaviour of that name. Built in are: "
            f"{', '.join(behavior_names())}."
        )
    return load_behavior(name)


def _open(source: str | os.PathLike[str] | Iterable[Any]) -> tuple[str, RowFile]:
    if isinstance(source, str | os.PathLike):
        file = open_rows(source)
        return str(source), dataclasses.replace(file, behavior=file.behavior or Path(source).stem)
    if isinstance(source, ContrastPairDataset):
        return "The dataset", RowFile(_given_rows(source), source.behavior, source.description)
    check_rows(source)
    return "The list", RowFile(_given_rows(source))


def _given_rows(rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows, 1):
        values, problem = {}, ""
        if isinstance(row, ContrastPair):
            values = dict(vars(row))
        elif isinstance(row, Mapping):
            values = dict(row)
        elif isinstance(row, Sequence) and not isinstance(row, str) and len(row) == 2:
            values = dict(zip(_REQUIRED, row, strict=True))
        else:
            problem = f"expected a mapping, a ContrastPair or two strings, found {type(row).__name__}."
        yield Row(number, f"row {number}", values, problem)


def _pair_of(row: Row, columns: Mapping[str, str]) -> ContrastPair:
    if row.problem:
        raise DatasetError(row.problem)
    # A user who names columns has another layout in mind than the one recognised here.
    is_caa = not columns and set(_CAA_COLUMNS.values()) <= set(row.values)
    sources = {name: name for name in (*TEXT_FIELDS, "metadata")} | (_CAA_COLUMNS if is_caa else dict(columns))
    missing = [sources[name] for name in _REQUIRED if sources[name] not in row.values]
    if missing:
        raise DatasetError(
            f"no {missing[0]!r}; there are: {', '.join(map(str, row.values)) or 'no columns'}. "
            "Name a column that is called otherwise: columns={'positive': 'chosen'}, or --column positive=chosen."
        )
    fields = {name: row.values.get(sources[name]) for name in TEXT_FIELDS}
    for name, value in fields.items():
        if value is not None and not isinstance(value, str) and name not in _PROMPT_FIELDS:
            raise DatasetError(f"{sources[name]!r} is of type {type(value).__name__}, expected a string{_hint(value)}.")
    metadata = row.values.get(sources["metadata"]) or {}
    if not isinstance(metadata, Mapping):
        raise DatasetError(f"'metadata' is of type {type(metadata).__name__}, expected an object.")
    used = set(sources.values())
    others = {name: value for name, value in row.values.items() if name not in used and value is not None}
    return _make_pair({**fields, **(_caa_answers(fields) if is_caa else {})}, {**metadata, **others})


def _make_pair(fields: dict[str, Any], metadata: dict[str, Any]) -> ContrastPair:
    given = {name: value for name, value in fields.items() if value is not None}
    texts = {name: given.get(name, "") for name in _REQUIRED}
    pair = ContrastPair(**{**given, **texts}, metadata=metadata)
    if _side(*pair.positive_side, pair.positive) == _side(*pair.negative_side, pair.negative):
        raise DatasetError(f"both sides are the same text ({pair.positive!r:.40}).")
    return pair


def _side(prompt: Prompt | None, system: str | None, text: str) -> tuple[str, str, str]:
    return (prompt_key(prompt) or "").strip(), (system or "").strip(), text.strip()


def _caa_answers(fields: Mapping[str, str | None]) -> dict[str, str]:
    """Answers without the blanks around them. A choice such as "(A)" has its letter as its span, where CAA reads."""
    answers: dict[str, str] = {}
    for name in _REQUIRED:
        answers[name] = (fields[name] or "").strip()
        letter = _CAA_LETTER.fullmatch(answers[name])
        if letter:
            answers[f"{name}_span"] = letter[1]
    return answers


def _identity(pair: ContrastPair) -> tuple[str | None, ...]:
    asked = (prompt_key(pair.prompt), pair.system, prompt_key(pair.negative_prompt), pair.negative_system)
    return (*asked, pair.positive, pair.negative)


def _hint(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "content" in value[0]:
        return " (these are chat messages: pass the content of the last one)"
    return ""


def rows_by_reason(problems: Iterable[RowProblem]) -> dict[str, list[int]]:
    """The rows of each kind of fault, in the order in which the kinds appear."""
    reasons: dict[str, list[int]] = {}
    for problem in problems:
        reasons.setdefault(problem.reason, []).append(problem.row)
    return reasons


def _describe(reading: PairReading) -> str:
    """All faults of a source in one message, by reason, each with its first rows and their number."""
    total = len(reading.rows) + len(reading.problems)
    if len(reading.problems) == 1:
        (problem,) = reading.problems
        return f"{problem.place}: {problem.reason} (1 of {total:,} rows cannot be used.)"
    reasons = rows_by_reason(reading.problems)
    lines = [f"{reading.name}: {len(reading.problems):,} of {total:,} rows cannot be used."]
    for reason, rows in list(reasons.items())[:_SHOWN_REASONS]:
        lines.append(f"  {name_rows(rows)}: {reason}")
    left = sum(len(rows) for rows in list(reasons.values())[_SHOWN_REASONS:])
    if left:
        lines.append(f"  and {left:,} more; `rotalabs-steer datasets check FILE` lists them all.")
    return "\n".join(lines)


def name_rows(rows: Sequence[int], limit: int = _SHOWN_ROWS) -> str:
    """Row numbers for a message: the first few, and how many more there are."""
    shown = ", ".join(str(row) for row in rows[:limit])
    more = f" and {len(rows) - limit:,} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
