"""Contrast pairs and evaluation prompts as data."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from rotalabs_steer.arguments import json_value
from rotalabs_steer.chat.conversations import check_prompt, prompt_text
from rotalabs_steer.errors import DatasetError
from rotalabs_steer.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rotalabs_steer.chat.conversations import Prompt

_Row = TypeVar("_Row")
_ROWS_SHOWN = 5


@dataclass(frozen=True)
class ContrastPair:
    """A text that shows a behaviour against one that does not.

    With a `prompt`, `positive` and `negative` are two responses to it and the chat template is applied; without
    one, they are two texts taken as they are.

    Attributes:
        prompt: what the user says, or a conversation: a list of messages, as in
            `[{"role": "user", "content": "Hello!"}]`, of which the last is a user's or a tool's.
        negative_prompt, negative_system: the negative side's own prompt or system message, where the sides differ in
            what the model is asked rather than in what it answers; the responses may then be empty.
        positive_span, negative_span: some words of a side, so that the activations of just these can be read.

    Raises:
        DatasetError: a side is empty, a prompt is malformed, a system message has no prompt, or a span is not in its
            text.
    """

    positive: str
    negative: str
    metadata: dict[str, Any] = field(default_factory=dict)
    prompt: Prompt | None = None
    system: str | None = None
    category: str = ""
    negative_prompt: Prompt | None = None
    negative_system: str | None = None
    positive_span: str | None = None
    negative_span: str | None = None

    def __post_init__(self) -> None:
        may_be_empty = self.asks_differently and (self.positive, self.negative) == ("", "")
        for side, text in (("positive", self.positive), ("negative", self.negative)):
            if not isinstance(text, str) or (not text.strip() and not may_be_empty):
                raise DatasetError(f"The {side} text of a pair is empty ({text!r:.40}); a pair needs both texts.")
        if self.prompt is None and (self.system is not None or self.asks_differently):
            raise DatasetError("A pair with a system message or a negative_prompt needs a prompt.")
        negative_system = self.system if self.negative_system is None else self.negative_system
        for name, system in (("prompt", self.system), ("negative_prompt", negative_system)):
            if getattr(self, name) is not None:  # a checked copy, so that changing the caller's list changes no pair
                object.__setattr__(self, name, check_prompt(getattr(self, name), system, name))
        # The negative side may put a system message of its own before a prompt that both sides share.
        if self.prompt is not None and self.negative_prompt is None:
            check_prompt(self.prompt, negative_system)
        for span, text in ((self.positive_span, self.positive), (self.negative_span, self.negative)):
            if span is not None and (not isinstance(span, str) or not span or span not in text):
                raise DatasetError(f"The span {span!r:.40} does not occur in its text {text!r:.40}.")

    @property
    def positive_side(self) -> tuple[Prompt | None, str | None]:
        """The prompt and the system message of the positive text."""
        return self.prompt, self.system

    @property
    def negative_side(self) -> tuple[Prompt | None, str | None]:
        """The prompt and the system message of the negative text; an empty `negative_system` means no message."""
        prompt = self.prompt if self.negative_prompt is None else self.negative_prompt
        return prompt, self.system if self.negative_system is None else self.negative_system or None

    @property
    def asks_differently(self) -> bool:
        """Whether the negative side has a prompt or system message of its own."""
        return self.negative_prompt is not None or self.negative_system is not None


TEXT_FIELDS = tuple(field.name for field in fields(ContrastPair) if field.name != "metadata")


@dataclass(frozen=True)
class EvaluationExample:
    """A prompt, and whether its answer should show the behaviour."""

    prompt: str
    expected_behavior: bool
    category: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    system: str | None = None


class _Dataset(ABC, Generic[_Row]):
    """Rows for one behaviour, kept in order."""

    _rows_name: str

    def __init__(self, behavior: str, rows: Iterable[_Row] | None = None, description: str = "") -> None:
        self.behavior = behavior
        self.description = description
        self._rows: list[_Row] = list(rows or ())

    def add(self, row: _Row) -> None:
        """Appends a row."""
        self._rows.append(row)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one JSON file, atomically.

        Raises:
            DatasetError: the metadata of a row holds a value that JSON has no type for.
        """
        document = {
            "behavior": self.behavior,
            "description": self.description,
            self._rows_name: [_without_defaults(row) for row in self._rows],
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, f"{json_text(document, indent=2)}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what `save`, or rotalabs-steer 1.2, wrote.

        Raises:
            DatasetError: the file is not such a dataset; the message names the row.
        """
        try:
            document = json.loads(Path(path).read_text("utf-8"))
            rows = document[cls._rows_name]
            behavior = document["behavior"]
            for name, value, kind in (("behavior", behavior, str), (cls._rows_name, rows, list)):
                if not isinstance(value, kind):
                    raise TypeError(f"{name} is a {type(value).__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DatasetError(
                f"{path} is not a dataset: it needs behavior and {cls._rows_name}. ({error!r})"
            ) from error
        return cls(
            behavior,
            [cls._parse(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)],
            document.get("description", ""),
        )

    @staticmethod
    @abstractmethod
    def _parse(row: Any, place: str) -> Any:
        """A row from its JSON value."""

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[_Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> _Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Row]: ...
    def __getitem__(self, index: int | slice) -> _Row | list[_Row]:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.behavior!r}, {len(self)} {self._rows_name})"


class ContrastPairDataset(_Dataset[ContrastPair]):
    """The contrast pairs of one behaviour."""

    _rows_name = "pairs"

    def __init__(self, behavior: str, pairs: Iterable[ContrastPair] | None = None, description: str = "") -> None:
        super().__init__(behavior, pairs, description)

    def add_pair(self, positive: str, negative: str, **metadata: Any) -> None:
        """Appends a pair of plain texts."""
        self.add(ContrastPair(positive, negative, metadata))

    @property
    def sha256(self) -> str:
        """A digest of the texts, in order, by which a vector's metadata names its dataset."""
        texts = [{name: value for name, value in vars(pair).items() if name != "metadata"} for pair in self]
        return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()

    @property
    def positives(self) -> list[str]:
        """The positive texts."""
        return [pair.positive for pair in self]

    @property
    def negatives(self) -> list[str]:
        """The negative texts."""
        return [pair.negative for pair in self]

    def _repr_html_(self) -> str:
        """What a notebook shows: the first pairs as a table."""
        names = ("prompt", "positive", "negative")
        rows = [[prompt_text(pair.prompt), pair.positive, pair.negative] for pair in self[:_ROWS_SHOWN]]
        head = "".join(f'<th style="text-align: left">{name}</th>' for name in names)
        cell = '<td style="text-align: left; vertical-align: top">'
        body = "".join("<tr>" + "".join(f"{cell}{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    @staticmethod
    def _parse(row: Any, place: str) -> ContrastPair:
        return parse_pair(row, place)


class EvaluationDataset(_Dataset[EvaluationExample]):
    """Prompts on which a behaviour is evaluated."""

    _rows_name = "examples"

    def __init__(
        self, behavior: str, examples: Iterable[EvaluationExample] | None = None, description: str = ""
    ) -> None:
        super().__init__(behavior, examples, description)

    def add_example(self, prompt: str, expected_behavior: bool, category: str = "", **metadata: Any) -> None:
        """Appends an example."""
        self.add(EvaluationExample(prompt, expected_behavior, category, metadata))

    @property
    def positive_examples(self) -> list[EvaluationExample]:
        """Examples whose answer should show the behaviour."""
        return [example for example in self if example.expected_behavior]

    @property
    def negative_examples(self) -> list[EvaluationExample]:
        """Examples whose answer should not show it."""
        return [example for example in self if not example.expected_behavior]

    @staticmethod
    def _parse(row: Any, place: str) -> EvaluationExample:
        return parse_example(row, place)


def parse_pair(row: Any, place: str) -> ContrastPair:
    """A contrast pair from a mapping with `positive` and `negative`, optionally the other fields.

    Raises:
        DatasetError: a field is missing or empty; the message begins with `place`.
    """
    if not isinstance(row, Mapping):
        raise DatasetError(f"{place}: expected an object with 'positive' and 'negative', found {type(row).__name__}.")
    optional = {name: row[name] for name in TEXT_FIELDS if name in row and name not in {"positive", "negative"}}
    metadata = _metadata_of(row, place)
    try:
        return ContrastPair(row["positive"], row["negative"], metadata, **optional)
    except KeyError as error:
        raise DatasetError(f"{place}: no {error.args[0]!r}; a pair needs 'positive' and 'negative'.") from error
    except DatasetError as error:
        raise DatasetError(f"{place}: {error}") from error


def parse_example(row: Any, place: str) -> EvaluationExample:
    """An evaluation example from a mapping with `prompt` and `expected_behavior`."""
    if not isinstance(row, Mapping) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise DatasetError(f"{place}: an evaluation example needs a 'prompt' that is not empty.")
    if not isinstance(row.get("expected_behavior"), bool):
        raise DatasetError(f"{place}: 'expected_behavior' must be true or false.")
    return EvaluationExample(
        row["prompt"], row["expected_behavior"], row.get("category", ""), _metadata_of(row, place), row.get("system")
    )


def _metadata_of(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise DatasetError(f"{place}: 'metadata' is of type {type(metadata).__name__}, expected an object.")
    return dict(metadata)


def as_dataset(pairs: ContrastPairDataset | Iterable[ContrastPair | Mapping[str, Any]]) -> ContrastPairDataset:
    """Pairs in memory as a dataset. The behaviour of a list is called "custom".

    Raises:
        DatasetError: there are no pairs, or one is malformed.
    """
    if isinstance(pairs, ContrastPairDataset):
        dataset = pairs
        for number, row in enumerate(dataset):
            if not isinstance(row, ContrastPair):
                raise DatasetError(f"pair {number} of the dataset is a {type(row).__name__}, not a ContrastPair.")
    elif isinstance(pairs, (str, os.PathLike)):
        raise DatasetError(
            f"Expected contrast pairs, got {os.fspath(pairs)!r:.80}. Load them first: load_pairs(path) reads a file, "
            "load_behavior(name) gives built-in pairs."
        )
    else:
        check_rows(pairs)
        rows = [row if isinstance(row, ContrastPair) else parse_pair(row, f"pair {n}") for n, row in enumerate(pairs)]
        dataset = ContrastPairDataset("custom", rows)
    if len(dataset) == 0:
        raise DatasetError(f"The dataset of {dataset.behavior!r} is empty: a steering vector needs at least one pair.")
    return dataset


def check_rows(rows: Any) -> None:
    """Raises a `DatasetError` unless rows can be read from this by iterating over it."""
    if hasattr(rows, "iterrows"):  # iterating over a pandas DataFrame gives its column names
        raise DatasetError(
            "Expected a list of pairs, got a table. Pass its rows: load_pairs(table.to_dict('records'))."
        )
    if isinstance(rows, Mapping):
        raise DatasetError(
            f"Expected a list of pairs, got a mapping with {', '.join(map(repr, list(rows)[:5]))}. Choose one split of "
            "a dataset, as in load_pairs(dataset['train']); put a single pair into a list."
        )
    if not isinstance(rows, Iterable):
        raise DatasetError(
            f"Expected a list of pairs, got a {type(rows).__name__}. A pair is a ContrastPair or a mapping with "
            "'positive' and 'negative'."
        )


def json_text(document: Any, indent: int | None = None) -> str:
    """A document as JSON, in which numbers of numpy and torch are numbers.

    Raises:
        DatasetError: it holds a value that JSON has no type for.
    """
    try:
        return json.dumps(document, indent=indent, ensure_ascii=False, default=json_value)
    except (TypeError, ValueError) as error:
        raise DatasetError(
            f"The metadata of a row cannot be written as JSON: {error}. Keep it to strings, numbers, lists and dicts. "
            "Nothing was written."
        ) from error


def _without_defaults(row: Any) -> dict[str, Any]:
    kept = ("positive", "negative")
    return {name: value for name, value in vars(row).items() if name in kept or value not in (None, "", {})}
