"""Measures of a set of contrast pairs, and findings where one is out of bounds.

A steering vector takes in everything that differs systematically between the sides. So the sides should differ in the
behaviour alone and be alike in length, topics and wording, and the pairs should not repeat each other.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rotalabs_steer.chat.conversations import prompt_text
from rotalabs_steer.chat.tokenizer import ChatTokenizer
from rotalabs_steer.datasets.bag_of_words import BagOfWords, measure_bag_of_words
from rotalabs_steer.datasets.overlap import overlapping_rows, split_words
from rotalabs_steer.errors import DatasetError, SteeringWarning

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from rotalabs_steer.datasets.pairs import ContrastPair

MOST_SHARED_PERCENT = 60
MOST_COMPARED_ROWS = 20_000
"""Comparing this many rows takes about two minutes if all are made from one template."""
FEWEST_CATEGORIES = 8
LENGTH_RATIOS = (0.8, 1.25)
TELLING_ACCURACY = 0.75
_EXTREMES = 5


@dataclass(frozen=True)
class Finding:
    """A measure that is out of bounds.

    Attributes:
        measure: "row", "prompts", "responses", "categories", "length" or "words".
        reason: what was found, the values and what to do.
        rows: numbers of the rows that it concerns, from 1; empty if it concerns all.
    """

    measure: str
    reason: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class QualityReport:
    """The measures of a set of pairs, and the findings.

    Attributes:
        splits, categories: number of pairs in each; empty where the pairs name none.
        positive_length, negative_length: mean length of a response in `length_unit` ("tokens" or "words").
        length_ratio: positive over negative; None where there are no responses.
        bag_of_words: whether words give the side away; None if that cannot be measured (see `measure_bag_of_words`).
    """

    pairs: int
    splits: dict[str, int]
    categories: dict[str, int]
    positive_length: float
    negative_length: float
    length_ratio: float | None
    length_unit: str
    bag_of_words: BagOfWords | None
    findings: tuple[Finding, ...]


def check_pairs(
    pairs: Iterable[ContrastPair],
    tokenizer: Any = None,
    markers: Sequence[str] = (),
    rows: Sequence[int] | None = None,
) -> QualityReport:
    """Measures pairs: repetition, categories, length of the sides, and words that give the side away.

    No measure here sees whether a response is fluent, true, or shows the behaviour. Only the first
    `MOST_COMPARED_ROWS` pairs are compared with each other; a `SteeringWarning` says so where there are more.

    Args:
        tokenizer: counts lengths in its tokens; without one they are counted in words.
        markers: words that express the behaviour itself, such as "sorry" for empathy; see `measure_bag_of_words`.
        rows: row number of every pair, for the findings; 1, 2, 3, ... by default.

    Raises:
        DatasetError: there are no pairs.
        MissingDependencyError: scikit-learn is not installed.
    """
    pairs = list(pairs)
    if not pairs:
        raise DatasetError("There are no pairs to check.")
    rows = list(range(1, len(pairs) + 1)) if rows is None else list(rows)
    compared = pairs[:MOST_COMPARED_ROWS]
    if len(compared) < len(pairs):
        warnings.warn(
            f"Repeated prompts and responses are looked for among the first {MOST_COMPARED_ROWS:,} of {len(pairs):,} "
            "pairs only. Check the others in parts of at most this size.",
            SteeringWarning,
            stacklevel=2,
        )
    splits = Counter(str(pair.metadata["split"]) for pair in pairs if pair.metadata.get("split"))
    categories = Counter(pair.category for pair in pairs if pair.category)
    bag = measure_bag_of_words(pairs, markers)
    lengths = _lengths(pairs, tokenizer)
    unit = "words" if tokenizer is None else "tokens"
    prompts = [[prompt_text(prompt) for prompt in (pair.prompt, pair.negative_prompt) if prompt] for pair in compared]
    positive, negative = (float(mean) for mean in lengths.mean(axis=0))
    ratio = positive / negative if negative else None
    findings = [
        *_overlap_findings("prompts", prompts, rows, pad=True),
        *_overlap_findings("responses", [(pair.positive, pair.negative) for pair in compared], rows, pad=False),
        *_category_findings(pairs, rows, len(categories)),
        *_length_findings(lengths, rows, ratio, unit),
        *_word_findings(bag, rows),
    ]
    return QualityReport(
        len(pairs), dict(splits), dict(categories), positive, negative, ratio, unit, bag, tuple(findings)
    )


def _overlap_findings(
    measure: str, texts: Sequence[Sequence[str]], rows: Sequence[int], *, pad: bool
) -> Iterator[Finding]:
    for overlap in overlapping_rows(texts, MOST_SHARED_PERCENT, pad):
        share = f"{overlap.share:.0%}" if len(overlap.rows) == 2 else f"up to {overlap.share:.0%}"
        yield Finding(
            measure,
            f"their {measure} share {share} of their word 4-grams, at most {MOST_SHARED_PERCENT}% is good: reword them "
            "or keep one.",
            tuple(rows[index] for index in overlap.rows),
        )


def _category_findings(pairs: Sequence[ContrastPair], rows: Sequence[int], count: int) -> Iterator[Finding]:
    if 0 < count < FEWEST_CATEGORIES:
        yield Finding(
            "categories",
            f"{count} {'category' if count == 1 else 'categories'}, at least {FEWEST_CATEGORIES} are good: with few "
            "topics the vector learns the topics.",
        )
    rows_and_splits: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row, pair in zip(rows, pairs, strict=True):
        if pair.category and pair.metadata.get("split"):
            rows_and_splits[pair.category].append((row, str(pair.metadata["split"])))
    for category, found in rows_and_splits.items():
        splits = sorted({split for _, split in found})
        if len(splits) > 1:
            yield Finding(
                "categories",
                f"category {category!r} is in the splits {', '.join(splits)}, so a measurement on one split "
                "uses a topic that was seen in another. Keep a category in one split.",
                tuple(sorted(row for row, _ in found)),
            )


def _lengths(pairs: Sequence[ContrastPair], tokenizer: Any) -> NDArray[np.int64]:
    """Lengths of the sides `[pairs, 2]`."""
    chat = None if tokenizer is None else ChatTokenizer.of(tokenizer)

    def length(text: str) -> int:
        return len(split_words(text) if chat is None else chat.ids(text, special=False))

    return np.array([[length(pair.positive), length(pair.negative)] for pair in pairs])


def _length_findings(
    lengths: NDArray[np.int64], rows: Sequence[int], ratio: float | None, unit: str
) -> Iterator[Finding]:
    low, high = LENGTH_RATIOS
    if ratio is None or low <= ratio <= high:
        return
    excess = (lengths[:, 0] - lengths[:, 1]) * (1 if ratio > 1 else -1)
    worst = np.argsort(-excess, kind="stable")[:_EXTREMES]
    yield Finding(
        "length",
        f"positive responses have {ratio:.2f} times the {unit} of negative ones, {low} to {high} is good: the vector "
        f"would steer length. The {len(worst)} rows that differ most are named.",
        tuple(sorted(rows[index] for index in worst)),
    )


def _word_findings(bag: BagOfWords | None, rows: Sequence[int]) -> Iterator[Finding]:
    if bag is None or bag.accuracy < TELLING_ACCURACY:
        return
    yield Finding(
        "words",
        f"single words tell the sides apart with accuracy {bag.accuracy:.2f} ({bag.low:.2f} to {bag.high:.2f}, "
        f"{bag.tested_pairs:,} pairs), below {TELLING_ACCURACY} is good; positive: {', '.join(bag.positive_words)}; "
        f"negative: {', '.join(bag.negative_words)}. Words that are the behaviour itself are named as markers; others "
        "should be as frequent on both sides. The surest rows are named.",
        tuple(rows[index] for index in bag.surest),
    )
