"""Rows of text that share most of their word 4-grams.

The share of two rows is the number of 4-grams they have in common over the number of the row that has fewer. Not all
pairs of rows are compared: two rows that share more than the limit have one of the smaller row's rarest 4-grams in
common (prefix filtering, after Chaudhuri et al. 2006), and most 4-grams occur in one row only.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_WORD = re.compile(r"\w+(?:'\w+)*")
_LENGTH = 4
_MANY = 200
"""A row that has a partner and meets others more often than this is not compared further, for rows made from one
template would take time quadratic in their number; whose only partner is such a row is named once that row is gone."""
_EXTRA = 3


@dataclass(frozen=True)
class Overlap:
    """Rows (by index) that each share more than the limit with another of them, and the largest share met."""

    rows: tuple[int, ...]
    share: float


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, contractions whole."""
    return _WORD.findall(text.lower().replace("’", "'"))


def overlapping_rows(rows: Sequence[Sequence[str]], percent: int, pad: bool = False) -> list[Overlap]:
    """Groups of rows that share more than `percent` of their word 4-grams.

    Args:
        rows: the texts of each row; a 4-gram lies within one text.
        pad: count a text of fewer than four words as one 4-gram; else it has none.
    """
    starts, grams = _grams_by_row(rows, pad)
    sizes = np.diff(starts)
    row_of = np.repeat(np.arange(len(rows)), sizes)
    frequency = np.bincount(grams, minlength=1)
    grams = grams[np.lexsort((frequency[grams], row_of))]  # within a row the rarest come first; the rows stay in place
    rows_by_gram = row_of[np.argsort(grams, kind="stable")]
    ends = np.cumsum(frequency)

    spare = sizes * percent // 100  # a row shares more than the limit if it shares more 4-grams than this
    prefix = sizes - spare
    rank = np.arange(len(grams)) - starts[row_of]
    probing = np.unique(row_of[(rank < prefix[row_of]) & (frequency[grams] > 1)])

    def rows_with(chosen: NDArray[np.int64], fewest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that have at least `fewest` of these 4-grams, and how many."""
        found = np.concatenate([rows_by_gram[ends[gram] - frequency[gram] : ends[gram]] for gram in chosen])
        if len(found) < len(rows):
            others, times = np.unique(found, return_counts=True)
        else:  # counting into a place for every row takes less time than sorting
            times = np.bincount(found, minlength=len(rows))
            others = np.arange(len(rows))
        enough = times >= fewest
        return others[enough], times[enough]

    groups = _Groups(len(rows))
    for row in probing.tolist():
        own = grams[starts[row] : starts[row + 1]]
        met = int(frequency[own[: prefix[row]]].sum())
        if met > _MANY and groups.has_partner(row):
            continue
        # Each 4-gram more in the prefix is one more that a partner must have in it.
        extra = min(int(spare[row]), _EXTRA) if met > _MANY else 0
        others, _ = rows_with(own[: prefix[row] + extra], extra + 1)
        others = others[(sizes[others] >= sizes[row]) & (others != row)]
        if len(others) > _MANY:
            enough, counts = rows_with(own, int(spare[row]) + 1)
            shared = dict(zip(enough.tolist(), counts.tolist(), strict=True))
        else:
            mine = set(own.tolist())
            shared = {i: len(mine.intersection(grams[starts[i] : starts[i + 1]].tolist())) for i in others.tolist()}
        for other in others.tolist():
            if shared.get(other, 0) > spare[row]:
                groups.join(row, other, shared[other] / len(own))
    return groups.overlaps()


def _grams_by_row(rows: Sequence[Sequence[str]], pad: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each row begins in the second array `[rows + 1]`, and the different 4-grams of all rows, numbered."""
    numbers: dict[str, int] = {"": 0}
    words, lengths, row_of_text = array("q"), array("q"), array("q")
    for row_number, texts in enumerate(rows):
        for text in texts:
            found = split_words(text)
            if pad and found:
                found += [""] * (_LENGTH - len(found))
            words.extend([numbers.setdefault(word, len(numbers)) for word in found])
            lengths.append(len(found))
            row_of_text.append(row_number)
    word, text_at = np.asarray(words), np.repeat(np.arange(len(lengths)), lengths)
    begins = np.flatnonzero(text_at[: -_LENGTH + 1] == text_at[_LENGTH - 1 :])
    # A pair of words, then a pair of pairs, each numbered afresh: exact, and no product exceeds 64 bits.
    pairs = _numbered(word[:-1] * len(numbers) + word[1:])
    grams = _numbered(pairs[begins] * (len(pairs) + 1) + pairs[begins + 2])
    keys = np.unique(np.asarray(row_of_text)[text_at[begins]] * (len(grams) + 1) + grams)
    owner, grams = np.divmod(keys, len(grams) + 1)
    return np.searchsorted(owner, np.arange(len(rows) + 1)), grams


def _numbered(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The values replaced by their rank among the different ones."""
    return np.searchsorted(np.unique(values), values)  # several times faster than unique's own inverse


class _Groups:
    """Rows joined into groups (a union-find forest)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))
        self._share: dict[int, float] = {}

    def has_partner(self, row: int) -> bool:
        return self._root(row) in self._share

    def join(self, row: int, other: int, share: float) -> None:
        low, high = sorted((self._root(row), self._root(other)))
        self._parent[high] = low
        self._share[low] = max(share, self._share.get(low, 0.0), self._share.pop(high, 0.0) if high != low else 0.0)

    def overlaps(self) -> list[Overlap]:
        members: dict[int, list[int]] = {root: [] for root in sorted(self._share)}
        for row in range(len(self._parent)):
            root = self._root(row)
            if root in members:
                members[root].append(row)
        return [Overlap(tuple(rows), self._share[root]) for root, rows in members.items()]

    def _root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = row = self._parent[self._parent[row]]
        return row
