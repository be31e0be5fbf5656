"""Rows of text that share most of their word 4-grams.

The share of two rows is the number of 4-grams they have in common over the number of the row that has fewer.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_WORD = re.compile(r"\w+(?:'\w+)*")
_LENGTH = 4


@dataclass(frozen=True)
class Overlap:
    """Rows (by index) that each share more than the limit with another of them, and the largest share of two."""

    rows: tuple[int, ...]
    share: float


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, contractions whole."""
    return _WORD.findall(text.lower().replace("’", "'"))


def overlapping_rows(rows: Sequence[Sequence[str]], percent: int, pad: bool = False) -> list[Overlap]:
    """Groups of rows that share more than `percent` of their word 4-grams.

    Time grows with the square of the number of rows that have a 4-gram in common.

    Args:
        rows: the texts of each row; a 4-gram lies within one text.
        pad: count a text of fewer than four words as one 4-gram; else it has none.
    """
    grams_of = [frozenset(gram for text in texts for gram in _grams(text, pad)) for texts in rows]
    groups = [[row] for row in range(len(rows))]  # rows that overlap refer to the same list
    shares = [0.0] * len(rows)
    rows_with: dict[tuple[str, ...], list[int]] = defaultdict(list)
    first: dict[frozenset[tuple[str, ...]], int] = {}
    for row, grams in enumerate(grams_of):
        same = first.setdefault(grams, row)
        if same == row:
            shared = Counter(chain.from_iterable(rows_with[gram] for gram in grams))
            for gram in grams:
                rows_with[gram].append(row)
        else:  # whatever overlaps with an equal row is found there, and a prompt may be the same in every row
            shared = Counter({same: len(grams)})
        for other, count in shared.items():
            fewer = min(len(grams), len(grams_of[other]))
            if 100 * count > percent * fewer:
                shares[row] = max(shares[row], count / fewer)
                smaller, larger = sorted((groups[row], groups[other]), key=len)
                if smaller is not larger:
                    larger += smaller
                    for member in smaller:
                        groups[member] = larger
    found = {id(group): group for group in groups if len(group) > 1}
    return [Overlap(tuple(sorted(group)), max(shares[row] for row in group)) for group in found.values()]


def _grams(text: str, pad: bool) -> Iterable[tuple[str, ...]]:
    words = split_words(text)
    if pad and words:
        words += [""] * (_LENGTH - len(words))
    return zip(*(words[start:] for start in range(_LENGTH)), strict=False)
